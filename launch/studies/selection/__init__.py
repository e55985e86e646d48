"""The study of data selection."""

"""The study of single exposures."""

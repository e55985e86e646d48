"""The study of a real pretrained model."""

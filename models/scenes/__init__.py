"""Synthetic scenes with questions: the data that the reference checkpoints are trained and measured on."""

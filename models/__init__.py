"""Reference checkpoints, and what made them."""

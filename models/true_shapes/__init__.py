"""Checkpoints of published models' true shapes with random weights: what they cost is real, what they answer is not."""

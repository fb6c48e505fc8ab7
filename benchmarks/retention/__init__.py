"""What fewer visual tokens and fewer bits cost in right answers: held-out questions to the reference checkpoints."""

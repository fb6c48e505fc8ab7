"""The scorer: relevance labels from explanations, and the network that predicts them."""

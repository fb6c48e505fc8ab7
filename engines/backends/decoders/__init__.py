"""Drivers of the decoder graphs, one for each lowering: they alone know the feeds, and what lies in a KV cache."""

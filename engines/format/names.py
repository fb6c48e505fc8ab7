"""Names that graphs and tensors of a bundle go by, for whoever writes one and whoever reads it."""

from __future__ import annotations

VISION = "vision"
SCORE = "score"
EMBED = "embed"
DECODER = "decoder"
DECODER_PREFILL = "decoder_prefill"
"""What fills the cache for the graph `decoder`, in bundles where that is fast at one token at a time only."""
STANDARD = "_standard"
"""Ends the names of the graphs of standard operators alone, which every backend and provider can run."""
VISION_STANDARD = VISION + STANDARD
DECODER_STANDARD = DECODER + STANDARD

PAST = "past_key_values."
"""Starts the names of the cache's inputs: `past_key_values.0.key`."""
PRESENT = "present."
"""Starts the names of the cache's outputs, which are bound to the arrays of its inputs."""

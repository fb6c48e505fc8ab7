"""Names that graphs, tensors and files of a bundle go by."""

from __future__ import annotations

STANDARD = "_standard"
"""Ends the names of the graphs of standard operators alone, `vision_standard` and `decoder_standard`: every other backend and
provider runs those."""

PREFILL_DECODER = "decoder_prefill"
"""What fills the cache for the graph `decoder`, in bundles where that is fast at one token at a time only."""

HOST_OUTPUTS = frozenset({"scores", "attention", "likeliest_tokens"})
"""Outputs that the host reads in every run. The others stay on the GPU where one runs the graphs: the next graph takes them,
and logits come to the host when sampling asks for them."""

"""How much of its pictures the vision tower computes: what a request asks for, which visual tokens that is, what came of it."""

from foveate.runtime.encoding.outcome import Encoding, Part
from foveate.runtime.encoding.request import AUTO, Encode, check_encode, check_redundancy, count_tokens

__all__ = ["AUTO", "Encode", "Encoding", "Part", "check_encode", "check_redundancy", "count_tokens"]

"""Symbols: the dimensions of inputs and outputs that a request decides. One name is one size in all graphs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from foveate.engines.format.spec import TensorSpec


class Symbol(NamedTuple):
    """What is known of a symbol."""

    example: int
    """A size for traces: above 1, no other symbol's and fitting theirs, so that no dimension looks constant or like another."""
    request: str
    """What a request says of it, to be formatted with its value."""
    decided_by: tuple[str, ...]
    """Which of `visual_tokens`, `text_tokens`, `new_tokens` and `batch` decide how large it gets."""


SYMBOLS: Mapping[str, Symbol] = {
    "frames": Symbol(3, "the image needs {} frames", ("visual_tokens",)),
    "patches": Symbol(16, "the image needs {} patches", ("visual_tokens",)),
    "visual_tokens": Symbol(9, "the request needs {} visual tokens", ("visual_tokens",)),
    "kept_tokens": Symbol(4, "the request keeps {} visual tokens", ("visual_tokens",)),
    "instruction_tokens": Symbol(7, "the question has {} tokens", ("text_tokens",)),
    "total_tokens": Symbol(11, "the prompt has {} tokens", ("visual_tokens", "text_tokens")),
    "sequence": Symbol(5, "the prompt has {} tokens", ("visual_tokens", "text_tokens")),
    "cache_tokens": Symbol(13, "prompt and answer need {} tokens of KV cache", ("visual_tokens", "text_tokens", "new_tokens")),
    "kv_capacity": Symbol(17, "the KV cache holds {} tokens", ("visual_tokens", "text_tokens", "new_tokens")),
    "batch": Symbol(2, "the batch has {} requests", ("batch",)),
}
"""Those of more than one family. Any other one is of a family's vision graph, see `find_symbol`."""
_EXAMPLE_STEP = 16
"""Like `patches`: a tower may split a dimension in halves or quarters."""


def find_symbol(name: str, number: int = 0) -> Symbol:
    """What is known of a symbol. One that is not in `SYMBOLS` grows with the image, and so with the visual tokens.

    Args:
        name: of the symbol.
        number: another one for each symbol, which gives those that are not in `SYMBOLS` examples of their own.
    """
    needs = f"the image needs {{}} {name.replace('_', ' ')}"
    return SYMBOLS.get(name) or Symbol(_EXAMPLE_STEP * (number + 2), needs, ("visual_tokens",))


def example_sizes(tensors: Iterable[TensorSpec]) -> dict[str, int]:
    """Symbol -> `Symbol.example`, of every symbol of the tensors."""
    found = dict.fromkeys(size for tensor in tensors for size in tensor.shape if isinstance(size, str))
    return {name: find_symbol(name, number).example for number, name in enumerate(found)}

"""What the vision tower's work comes to, before it is done."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.runtime.types import Visual

_ATTENTION = 0.31
"""Share of a tower's work that grows with the square of the patches; of Qwen2-VL-2B at 1008x672."""
_WORTH = 0.9
"""Of the whole tower's work, above which a glance does not pay."""


def is_worth(glances: Sequence[Visual], count: int, visuals: Sequence[Visual]) -> bool:
    """Whether a glance and `count` visual tokens are clearly less work for a tower than all of them."""
    sizes = [(small.num_tokens, whole.num_tokens) for small, whole in zip(glances, visuals, strict=True)]
    total = sum(whole for _, whole in sizes)
    glance = sum(whole * _work(small / whole) for small, whole in sizes) / total
    return glance + _work(count / total) < _WORTH


def _work(tokens: float) -> float:
    """Of a tower, for a share of a picture's patches."""
    return (1 - _ATTENTION) * tokens + _ATTENTION * tokens**2

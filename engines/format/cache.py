"""How many tokens a KV cache is made for, and how many of them a step looks at."""

from __future__ import annotations

BLOCK_TOKENS = 16
"""A cache whose capacity the graph leaves open holds whole blocks of this: as small as the request allows, but not of another
size for each."""
WINDOW_TOKENS = 64
"""A step looks at whole windows of this, so that as many steps have equal shapes and can be launched as one CUDA graph. A
capacity that an engine fixes is made of them."""


def whole(tokens: int, unit: int) -> int:
    """`tokens`, rounded up to whole units."""
    return -(-tokens // unit) * unit

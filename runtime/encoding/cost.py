"""What the vision tower's work comes to, before it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foveate.engines import Grid

RunCost = Callable[[int], float]
"""What one run of the vision graph over so many visual tokens costs, in any unit."""
_ATTENTION = 0.31
"""Share of a tower's work that grows with the square of the patches; of Qwen2-VL-2B at `_MEASURED_TOKENS`."""
_MEASURED_TOKENS = 864
_WORTH = 0.9
"""Of what looks at more, above which looking at less does not pay."""


def estimate(tokens: int) -> float:
    """A `RunCost` by the number of operations: 1 for a picture of 1008x672."""
    size = tokens / _MEASURED_TOKENS
    return (1 - _ATTENTION) * size + _ATTENTION * size**2


def spread(grids: Sequence[Grid], tokens: np.ndarray | None = None) -> np.ndarray:
    """How many visual tokens of each frame are among `tokens`: `[frames]` int64; all of them for None."""
    sizes = np.array([rows * columns for frames, rows, columns in grids for _ in range(frames)], np.int64)
    if tokens is None:
        return sizes
    return np.bincount(np.searchsorted(np.cumsum(sizes), tokens, side="right"), minlength=len(sizes))


def total_cost(cost: RunCost, counts: np.ndarray) -> float:
    """Of frames with so many visual tokens, `[frames]`, each a run of its own; those without one are not run."""
    return sum(cost(count) for count in np.rint(counts).astype(int).tolist() if count)


def first_worth(costs: Sequence[float]) -> int:
    """Which of several to take: the cheapest, or one before it that costs hardly more. Those before look at more."""
    return next(number for number, cost in enumerate(costs) if cost * _WORTH <= min(costs))

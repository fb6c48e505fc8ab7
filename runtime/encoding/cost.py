"""What the ways to an answer cost where nothing was measured, and when looking at less pays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveate.engines import Grid

WORTH = 0.9
"""Of what looks at more, above which looking at less does not pay: it costs answers too, and predictions err by some
per cent."""
_ATTENTION = 0.31
"""Share of a tower's work that grows with the square of the patches; of Qwen2-VL-2B at `_MEASURED_TOKENS`."""
_MEASURED_TOKENS = 864


class Estimate:
    """In place of a `LatencyModel`: the operations of the tower alone, in pictures of 1008x672."""

    def vision_ms(self, visual_tokens: int) -> float:
        """One run of the vision graph."""
        size = visual_tokens / _MEASURED_TOKENS
        return (1 - _ATTENTION) * size + _ATTENTION * size**2

    def score_ms(self, visual_tokens: int) -> float:
        """Left out."""
        return 0.0

    def prefill_ms(self, prompt_tokens: int) -> float:
        """Left out."""
        return 0.0


def spread(grids: Sequence[Grid], tokens: np.ndarray | None = None) -> tuple[int, ...]:
    """How many visual tokens of each frame are among `tokens`, a run of the tower each; all of them for None. Frames without
    any are left out."""
    sizes = np.array([rows * columns for frames, rows, columns in grids for _ in range(frames)], np.int64)
    if tokens is None:
        return tuple(sizes.tolist())
    counts = np.bincount(np.searchsorted(np.cumsum(sizes), tokens, side="right"))
    return tuple(counts[counts > 0].tolist())


def first_worth(costs: Sequence[float]) -> int:
    """Which of several to take: the cheapest, or one before it that costs hardly more. Those before look at more."""
    return next(number for number, cost in enumerate(costs) if cost * WORTH <= min(costs))

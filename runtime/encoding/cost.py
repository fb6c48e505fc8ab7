"""What the ways to an answer cost, before one is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines import Grid

_ATTENTION = 0.31
"""Share of a tower's work that grows with the square of the patches; of Qwen2-VL-2B at `_MEASURED_TOKENS`."""
_MEASURED_TOKENS = 864
_WORTH = 0.9
"""Of what looks at more, above which looking at less does not pay."""


@dataclass(frozen=True)
class Cost:
    """What stages cost, all in one unit.

    Attributes:
        vision: one run of the vision graph, by its visual tokens.
        score: scoring and selecting, by visual tokens.
        prefill: by the tokens of the prompt.
    """

    vision: Callable[[int], float]
    score: Callable[[int], float]
    prefill: Callable[[int], float]


def estimate(tokens: int) -> float:
    """Operations of one run of a tower: 1 for a picture of 1008x672."""
    size = tokens / _MEASURED_TOKENS
    return (1 - _ATTENTION) * size + _ATTENTION * size**2


def _nothing(tokens: int) -> float:
    return 0.0


ESTIMATE = Cost(estimate, _nothing, _nothing)
"""By the tower's operations alone, where nothing was measured."""


@dataclass(frozen=True)
class Ways:
    """What the ways from pixels to the first token cost.

    Attributes:
        cost: of the stages.
        text_tokens: of the prompt.
        needs_scores: whether the selector wants scores.
    """

    cost: Cost
    text_tokens: int
    needs_scores: bool

    def pruned(self, runs: np.ndarray, kept: int) -> float:
        """The tower over frames with so many visual tokens, `[frames]`, of which the LLM sees some."""
        computed = int(runs.sum())
        score = self.cost.score(computed) if kept < computed and self.needs_scores else 0.0
        return total_cost(self.cost.vision, runs) + score + self.cost.prefill(self.text_tokens + min(kept, computed))

    def foveated(self, glances: np.ndarray, parts: np.ndarray) -> float:
        """A glance at frames with so many visual tokens, then as many of each as `parts` says, which the LLM sees."""
        glance = total_cost(self.cost.vision, glances) + self.cost.score(int(glances.sum()))
        return glance + total_cost(self.cost.vision, parts) + self.cost.prefill(self.text_tokens + round(parts.sum()))


def spread(grids: Sequence[Grid], tokens: np.ndarray | None = None) -> np.ndarray:
    """How many visual tokens of each frame are among `tokens`: `[frames]` int64; all of them for None."""
    sizes = np.array([rows * columns for frames, rows, columns in grids for _ in range(frames)], np.int64)
    if tokens is None:
        return sizes
    return np.bincount(np.searchsorted(np.cumsum(sizes), tokens, side="right"), minlength=len(sizes))


def total_cost(cost: Callable[[int], float], counts: np.ndarray) -> float:
    """Of frames with so many visual tokens, `[frames]`, each a run of its own; those without one are not run."""
    return sum(cost(count) for count in np.rint(counts).astype(int).tolist() if count)


def first_worth(costs: Sequence[float]) -> int:
    """Which of several to take: the cheapest, or one before it that costs hardly more. Those before look at more."""
    return next(number for number, cost in enumerate(costs) if cost * _WORTH <= min(costs))

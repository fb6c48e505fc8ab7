"""How many visual tokens of a request stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foveate.engines import RequestError
from foveate.runtime.values import number, settle, share, whole

_LIMITS = ("ratio", "tokens", "mass", "ttft_ms")


@dataclass(frozen=True)
class Budget:
    """At most one of four limits; none keeps every visual token. At least one token stays.

    Attributes:
        ratio: share of the tokens, 0 < ratio <= 1, rounded half up: `floor(ratio * N + 0.5)`.
        tokens: number of tokens, at least 1; a number above N keeps all.
        mass: the smallest number of tokens whose normalised scores sum to this share, 0 < mass <= 1.
        ttft_ms: as many tokens as let the first one of the answer come within so many milliseconds, as far as the bundle's
            measured latencies predict; the time starts with the preprocessing.
        only_if_faster: with `ratio` or `tokens`: keep every token where scoring would take longer than pruning saves, as far as
            the bundle's measured latencies predict. The answer's selection says so in its `reason`.

    Raises:
        RequestError: a value out of its range, or two limits at once.
    """

    ratio: float | None = None
    tokens: int | None = None
    mass: float | None = None
    ttft_ms: float | None = None
    only_if_faster: bool = False

    def __post_init__(self) -> None:
        chosen = [name for name in _LIMITS if getattr(self, name) is not None]
        if type(self.only_if_faster) is not bool or (self.only_if_faster and chosen not in (["ratio"], ["tokens"])):
            raise RequestError(
                f"the budget has only_if_faster {self.only_if_faster!r} beside {' and '.join(chosen) or 'no limit'}, "
                "expected True beside ratio or tokens. Set one of them, or leave it out."
            )
        if len(chosen) > 1:
            raise RequestError(f"the budget has {' and '.join(chosen)}, expected one of them. Drop all but one.")
        if self.ratio is not None:
            remedy = "Use 0.5 for half of the tokens; a number of tokens is another limit (keep_tokens)."
            settle(self, ratio=share("the budget's ratio", self.ratio, remedy))
        if self.mass is not None:
            settle(self, mass=share("the budget's mass", self.mass, "Use 0.9 for 90 % of the relevance."))
        if self.tokens is not None:
            settle(self, tokens=whole("the budget's number of tokens", self.tokens, 1, "Use 64 for 64 tokens."))
        if self.ttft_ms is not None:
            remedy = "Use 300 for 0.3 seconds."
            settle(self, ttft_ms=number("the budget's ttft_ms", self.ttft_ms, lambda ms: ms > 0, "above 0", remedy))

    def keeps_all(self, num_visual_tokens: int) -> str | None:
        """Why every token stays whatever the scores say; None where the scores matter."""
        if num_visual_tokens == 0:
            return "the request has no image"
        if self == Budget():
            return "no budget was set"
        if self.mass is None and self.ttft_ms is None and self._fixed_count(num_visual_tokens) == num_visual_tokens:
            limit = f"{self.tokens} tokens" if self.tokens is not None else f"ratio {self.ratio:g}"
            return f"the budget ({limit}) covers all {num_visual_tokens} visual tokens"
        return None

    def fewest(self, num_visual_tokens: int) -> int:
        """The least number of tokens that stay, whatever the scores say."""
        if self.mass is not None or self.ttft_ms is not None:
            return min(1, num_visual_tokens)
        return self._fixed_count(num_visual_tokens)

    def count(self, weights: np.ndarray) -> int:
        """Number of tokens that stay.

        Args:
            weights: `[num_visual_tokens]`, non-negative; only `mass` looks at their values.
        """
        if self.mass is None:
            return self._fixed_count(len(weights))
        cumulative = np.cumsum(np.sort(weights.astype(np.float64))[::-1])
        return int(np.searchsorted(cumulative, self.mass * cumulative[-1])) + 1

    def _fixed_count(self, total: int) -> int:
        if self.tokens is not None:
            return min(self.tokens, total)
        ratio = 1.0 if self.ratio is None else self.ratio
        return min(max(1, math.floor(ratio * total + 0.5)), total)

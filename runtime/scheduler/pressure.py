"""Pressure becomes budget: under load flexible requests keep fewer visual tokens, as long as the right answers stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.engines import OptionError, ScorerEntry
from foveate.runtime.budget import Budget
from foveate.runtime.encoding.cost import spread
from foveate.runtime.encoding.plan import TowerModel, TowerSizes
from foveate.runtime.latency import LatencyModel, Unmeasured, measured
from foveate.runtime.retention import FEWEST_QUESTIONS
from foveate.runtime.types import Prepared, Request

_MARGIN = 0.85
"""Of the objective, what is planned for: predictions err, and a burst goes on."""
_GLANCE = 9
"""A small picture has about so many times fewer visual tokens."""
_MEMORY = 0.8
"""Of the last slowdown that stays with each new one."""


@dataclass(frozen=True)
class Level:
    """A measured budget.

    Attributes:
        keep: share of the visual tokens.
        encode: share that the tower computes; None for all.
        retained: share of the right answers that stays right at least.
    """

    keep: float
    encode: float | None
    retained: float


EVERYTHING = Level(1.0, None, 1.0)


def levels(scorer: ScorerEntry, floor: float) -> list[Level]:
    """The measured budgets of a bundle that are not below a floor, and the one that leaves everything as it is."""
    points = [point for point in scorer.retention if point.questions >= FEWEST_QUESTIONS and point.share[1] >= floor]
    found = [Level(point.keep, point.encode, point.share[1]) for point in points if point.keep < 1 or point.encode is not None]
    return [EVERYTHING, *sorted(found, key=lambda level: -level.retained)]


class Pressure:
    """Plans budgets so that every request that waits may begin in time. Not for several threads.

    Args:
        ttft_slo_ms: the objective, from when a request came to its first token.
        scorer: of the bundle.
        latency: what stages take here.
        default_floor: `min_retained` of requests that set none.

    Raises:
        OptionError: nothing was measured, or the bundle has no curve.
    """

    def __init__(
        self, ttft_slo_ms: float, scorer: ScorerEntry, latency: LatencyModel | Unmeasured | None, default_floor: float
    ) -> None:
        self._slo_ms = ttft_slo_ms
        self._scorer = scorer
        self._floor = default_floor
        self._slowdown = 1.0
        try:
            self._model = measured(latency, f"ttft_slo_ms is {ttft_slo_ms:g}")
        except Exception as error:
            raise OptionError(str(error), options=("ttft_slo_ms",)) from error
        if len(levels(scorer, default_floor)) == 1:
            raise OptionError(
                f"ttft_slo_ms is set, and this bundle has no budget that retains {default_floor:g} of the right answers. Measure "
                "some with 'foveate export CHECKPOINT -o BUNDLE --calibrate DATA', or lower min_retained.",
                options=("ttft_slo_ms", "min_retained"),
            )

    def allowed_ms(self, waited_ms: Sequence[float]) -> float:
        """What a request may take so that those behind it begin in time too, if they take as long.

        Args:
            waited_ms: of the request and of those behind it, in their order.
        """
        left = [(_MARGIN * self._slo_ms - waited, place) for place, waited in enumerate(waited_ms, start=1)]
        return min((ms / place for ms, place in left if ms > 0), default=0.0)

    def shape(self, request: Request, prepared: Prepared, waited_ms: Sequence[float]) -> tuple[Request, str, float]:
        """The request with the budget that it gets, why, and what it is expected to take.

        Args:
            request: flexible, without a budget of its own.
            prepared: what it is about.
            waited_ms: see `allowed_ms`.
        """
        floor = self._floor if request.min_retained is None else request.min_retained
        if not prepared.num_visual_tokens:
            return request, "", self._takes(EVERYTHING, prepared)
        allowed = self.allowed_ms(waited_ms) / self._slowdown
        known = [(level, self._takes(level, prepared)) for level in levels(self._scorer, floor)]
        fitting = [pair for pair in known if pair[1] <= allowed]
        level, takes_ms = fitting[0] if fitting else min(known, key=lambda pair: pair[1])
        if level is EVERYTHING:
            return request, "", takes_ms
        why = (
            f"{len(waited_ms) - 1} wait behind it, so that {max(allowed, 0):.0f} ms are left for the first token of each "
            f"within {self._slo_ms:g} ms"
        )
        budget = replace(request, budget=Budget(ratio=level.keep), encode=level.encode, min_retained=floor)
        return budget, why, takes_ms

    def learn(self, predicted_ms: float, took_ms: float) -> None:
        """Notes how much longer a request took than it would alone."""
        if predicted_ms > 0:
            now = float(np.clip(took_ms / predicted_ms, 0.5, 8.0))
            self._slowdown = _MEMORY * self._slowdown + (1 - _MEMORY) * now

    def _takes(self, level: Level, prepared: Prepared) -> float:
        """From its turn to the first token, if it were alone."""
        pictures = spread(prepared.grids)
        glances = None if level.encode is None else tuple(max(1, tokens // _GLANCE) for tokens in pictures)
        model = TowerModel(TowerSizes(pictures, glances, prepared.num_text_tokens), self._model)
        total = prepared.num_visual_tokens
        if level.encode is None:
            return model.kept_ms(_count(level.keep, total))
        return model.part_ms(_count(level.encode, total))


def _count(share: float, total: int) -> int:
    return Budget(ratio=share).count(np.empty(total))

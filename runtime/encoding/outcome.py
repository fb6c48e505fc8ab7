"""What became of it: which visual tokens the tower computed, and what an answer says about that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from foveate.engines import Array
from foveate.runtime.budget import Budget
from foveate.runtime.encoding.redundancy import find_runs
from foveate.runtime.latency import LatencyModel, Plan, Sizes, Unmeasured, plan
from foveate.runtime.picture import Picture
from foveate.runtime.select import Selection


@dataclass(frozen=True)
class Encoding:
    """What the vision tower computed.

    Attributes:
        encoded_tokens: visual tokens that it computed at full resolution.
        visual_tokens: that there are.
        glance_tokens: of the small pictures that it looked at first; 0 where it did not.
        reason: why it computed more than the request asked for; empty where that is not so.
        redundant_tokens: visual tokens that repeat others, where it was looked for them.
        redundant_runs: of these, which of the computed tokens stand for them: the first of a run, how many there are, and the
            token that stands for them.
    """

    encoded_tokens: int
    visual_tokens: int
    glance_tokens: int = 0
    reason: str = ""
    redundant_tokens: int = 0
    redundant_runs: tuple[tuple[int, int, int], ...] = ()

    def told(self) -> str:
        """In a few words."""
        seen = "all" if self.encoded_tokens == self.visual_tokens else str(self.encoded_tokens)
        glance = f" after a glance at {self.glance_tokens}" if self.glance_tokens else ""
        repeats = f", {self.redundant_tokens} repeat others" if self.redundant_tokens else ""
        reason = f" ({self.reason})" if self.reason else ""
        return f"the tower saw {seen}{glance}{repeats}{reason}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Part:
    """The visual tokens that the tower computes.

    Attributes:
        tokens: `[encoded]` int64, ascending, counted over all visual tokens.
        scores: `[visual_tokens]` float32, what the glance said about each; None where there was none.
        selector: that chose them.
        total: how many visual tokens there are.
        glance_tokens: of the small pictures that were looked at; 0 where the part hangs on no question.
        pictures: those, as the tower saw them.
        seen: `visual_embeds` of each small picture, where they are the first ones of the whole; else empty.
        sources: `[visual_tokens]` int64, which token stands for each; None where it was not looked for redundant ones.
        reason: see `Encoding.reason`.
        predicted_ttft_ms: what the time to first token is expected to be, where the part was planned by time: then all of it
            stays.
    """

    tokens: np.ndarray
    scores: np.ndarray | None
    selector: str
    total: int
    glance_tokens: int = 0
    pictures: tuple[Picture, ...] = ()
    seen: tuple[Array, ...] = ()
    sources: np.ndarray | None = None
    reason: str = ""
    predicted_ttft_ms: float | None = None

    def encoding(self) -> Encoding:
        """What an answer says."""
        told = Encoding(len(self.tokens), self.total, self.glance_tokens, self.reason)
        if self.sources is None:
            return told
        redundant = int(np.count_nonzero(self.sources != np.arange(self.total)))
        return replace(told, redundant_tokens=redundant, redundant_runs=find_runs(self.sources, self.tokens))

    def plan(self, budget: Budget, sizes: Sizes, model: LatencyModel | Unmeasured | None) -> Plan:
        """What a budget over all visual tokens comes to for those that were computed; see `plan`."""
        if budget.ttft_ms is None:
            return plan(self.budget(budget), sizes, model)
        if self.predicted_ttft_ms is not None:
            return Plan(Budget(), predicted_ttft_ms=self.predicted_ttft_ms)
        return replace(plan(budget, sizes, model), reason="")  # that all of the part fits is not that all tokens do

    def budget(self, budget: Budget) -> Budget:
        """A budget over all visual tokens, as one over those that were computed."""
        return budget if budget.ratio is None else replace(budget, ratio=None, tokens=budget.count(np.empty(self.total)))

    def lift(self, selection: Selection, reason: str) -> Selection:
        """A selection among the computed tokens, as one among all.

        Args:
            selection: among those.
            reason: what is worth knowing where all of them stayed, which is no reason in itself.
        """
        keep_indices, scores = self.tokens[selection.keep_indices], self.scores
        if selection.scores is not None:
            scores = np.zeros(self.total, np.float32)
            scores[self.tokens] = selection.scores
        if len(keep_indices) == len(self.tokens):
            return Selection(keep_indices, self.total, self.selector, reason, scores)
        return Selection(keep_indices, self.total, selection.selector, selection.reason, scores)

"""How much the vision tower computes: what a request asks for, and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from foveate.engines import RequestError
from foveate.engines.errors import shown
from foveate.runtime.budget import Budget
from foveate.runtime.select import Selection
from foveate.runtime.values import share

AUTO: Literal["auto"] = "auto"
Encode = float | Literal["auto"]
"""Share of the visual tokens that the tower may compute, 0 < share <= 1; `auto` takes what the budget keeps, where a glance
and so many are less work than all."""


@dataclass(frozen=True)
class Encoding:
    """What the vision tower computed.

    Attributes:
        encoded_tokens: visual tokens that it computed at full resolution.
        visual_tokens: that there are.
        glance_tokens: of the small pictures that it looked at first; 0 where it did not.
        reason: why it computed all although the request allowed fewer; empty where that is not so.
    """

    encoded_tokens: int
    visual_tokens: int
    glance_tokens: int = 0
    reason: str = ""

    def told(self) -> str:
        """In a few words."""
        if self.reason:
            return f"the tower saw all ({self.reason})"
        return f"the tower saw {self.encoded_tokens} after a glance at {self.glance_tokens}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Part:
    """The visual tokens that the tower computed for a question.

    Attributes:
        tokens: `[encoded]` int64, ascending, counted over all visual tokens.
        scores: `[visual_tokens]` float32, what the glance said about each.
        selector: that chose them.
        total: how many visual tokens there are.
    """

    tokens: np.ndarray
    scores: np.ndarray
    selector: str
    total: int

    def budget(self, budget: Budget) -> Budget:
        """A budget over all visual tokens, as one over those that were computed."""
        return budget if budget.ratio is None else replace(budget, ratio=None, tokens=budget.count(np.empty(self.total)))

    def lift(self, selection: Selection, reason: str) -> Selection:
        """A selection among the computed tokens, as one among all.

        Args:
            selection: among those.
            reason: what is worth knowing where all of them stayed, which is no reason in itself.
        """
        keep_indices = self.tokens[selection.keep_indices]
        if selection.scores is None:
            return Selection(keep_indices, self.total, self.selector, reason, self.scores)
        scores = np.zeros(self.total, np.float32)
        scores[self.tokens] = selection.scores
        return Selection(keep_indices, self.total, selection.selector, selection.reason, scores)


def check_encode(value: object) -> Encode | None:
    """`Request.encode`, settled.

    Raises:
        RequestError: it is neither a share nor `auto`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value == AUTO:
            return AUTO
        fact = f"encode is {shown(value)}, expected a share above 0, up to 1, or auto"
        raise RequestError(f"{fact}. Use 0.25.", options=("encode",))
    return share("encode", value, "Use 0.25 for a quarter of the visual tokens, or auto.")


def count_tokens(encode: Encode, budget: Budget, total: int) -> int | str:
    """How many visual tokens the tower may compute; or why it computes all.

    Raises:
        RequestError: the budget keeps more than that, or is in milliseconds.
    """
    kept = budget.count(np.empty(total)) if budget.ratio is not None or budget.tokens is not None else None
    if encode == AUTO:
        return kept if kept is not None else "no share or number of tokens is kept that would say how many are enough"
    if budget.ttft_ms is not None:
        raise RequestError(
            "the budget is in milliseconds, and those are planned after the tower. Set keep beside encode.",
            options=("encode", "keep"),
        )
    allowed = Budget(ratio=encode).count(np.empty(total))
    if kept is not None and kept > allowed:
        raise RequestError(
            f"the budget keeps {kept} visual tokens, the tower may compute {allowed} of {total}. Keep fewer, or raise encode.",
            options=("encode", "keep"),
        )
    return allowed

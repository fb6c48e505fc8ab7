"""What became of it: which visual tokens the tower computed, and what an answer says about that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from foveate.engines import Array
from foveate.runtime.budget import Budget
from foveate.runtime.picture import Picture
from foveate.runtime.select import Selection


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
    """The visual tokens that the tower computes for a question.

    Attributes:
        tokens: `[encoded]` int64, ascending, counted over all visual tokens.
        scores: `[visual_tokens]` float32, what the glance said about each.
        selector: that chose them.
        total: how many visual tokens there are.
        glance_tokens: of the small pictures that were looked at.
        pictures: those, as the tower saw them.
        seen: `visual_embeds` of each small picture, where they are the first ones of the whole; else empty.
    """

    tokens: np.ndarray
    scores: np.ndarray
    selector: str
    total: int
    glance_tokens: int = 0
    pictures: tuple[Picture, ...] = ()
    seen: tuple[Array, ...] = ()

    def encoding(self) -> Encoding:
        """What an answer says."""
        return Encoding(len(self.tokens), self.total, self.glance_tokens)

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

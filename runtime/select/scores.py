"""Selectors that keep the highest scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import numpy as np

from foveate.engines import RequestError
from foveate.engines.errors import OptionError
from foveate.runtime.select.base import Relevance, Selector, top_k


class Ranking(Selector):
    """Keeps the tokens of the highest weight."""

    def weights(self, relevance: Relevance) -> np.ndarray:
        raise NotImplementedError

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        return top_k(self.weights(relevance), count)


@dataclass(frozen=True)
class Learned(Ranking):
    """The scores of the trained scorer."""

    name: ClassVar[str] = "learned"
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    def weights(self, relevance: Relevance) -> np.ndarray:
        assert relevance.scores is not None
        return relevance.scores


@dataclass(frozen=True)
class Foveated(Learned):
    """Sharp where it matters and coarse elsewhere, as an eye sees: the highest scores, and every n-th of the other tokens.

    What a question asks about scores high. That nothing lies somewhere, or nothing lay there before, is told by tokens that
    score low and are much alike: a few of them, from everywhere, say it. A clip has more of them than an image.

    Attributes:
        periphery: share of the budget for the other tokens, 0 (the same as `Learned`) to 1.
        video_periphery: the same for a request with a video. Both are the best for the worst of three checkpoints, of shares
            0, 1/4, 1/2 and 3/4, on validation questions (docs/retention.md).

    Raises:
        OptionError: a share out of its range.
    """

    periphery: float = 0.25
    video_periphery: float = 0.5
    name: ClassVar[str] = "foveated"

    def __post_init__(self) -> None:
        for share in (self.periphery, self.video_periphery):
            if not isinstance(share, Real) or not 0 <= share <= 1:
                raise OptionError(f"a share of selector '{self.name}' is {share!r}, expected a number from 0 to 1. Use 0.5.")

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        moves = any(frames > 1 for frames, _, _ in relevance.grids)
        around = int(count * (self.video_periphery if moves else self.periphery))
        fovea = top_k(self.weights(relevance), count - around)
        others = np.delete(np.arange(len(relevance)), fovea)
        # The middle of each of `around` equal parts.
        middles = (2 * np.arange(around) + 1) * len(others) // (2 * max(around, 1))
        return np.sort(np.concatenate([fovea, others[middles]]))


@dataclass(frozen=True)
class Attention(Ranking):
    """Layer-0 attention: what the trained scorer gets, without the network."""

    name: ClassVar[str] = "attention"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def weights(self, relevance: Relevance) -> np.ndarray:
        assert relevance.attention is not None
        return relevance.attention


@dataclass(frozen=True, eq=False)
class Oracle(Ranking):
    """Relevance from elsewhere, such as the labels of `foveate scorer label`: the ceiling of any scorer.

    Attributes:
        relevance: `[num_visual_tokens]` float32, non-negative.
    """

    relevance: np.ndarray = field(repr=False)
    name: ClassVar[str] = "oracle"
    needs_all: ClassVar[bool] = True

    def weights(self, relevance: Relevance) -> np.ndarray:
        if self.relevance.shape != (len(relevance),):
            raise RequestError(
                f"the oracle has relevance for {self.relevance.shape} visual tokens, the request has {len(relevance)}. "
                "Give the labels of this very sample."
            )
        return self.relevance

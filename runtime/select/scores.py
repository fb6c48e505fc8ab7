"""Selectors that keep the highest scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from foveate.engines import RequestError
from foveate.runtime.select.base import Relevance, Selector, top_k


class _Ranking(Selector):
    """Keeps the tokens of the highest weight."""

    def weights(self, relevance: Relevance) -> np.ndarray:
        raise NotImplementedError

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        return top_k(self.weights(relevance), count)


@dataclass(frozen=True)
class Learned(_Ranking):
    """The scores of the trained scorer."""

    name: ClassVar[str] = "learned"
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    def weights(self, relevance: Relevance) -> np.ndarray:
        assert relevance.scores is not None
        return relevance.scores


@dataclass(frozen=True)
class Attention(_Ranking):
    """Layer-0 attention: what the trained scorer gets, without the network."""

    name: ClassVar[str] = "attention"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def weights(self, relevance: Relevance) -> np.ndarray:
        assert relevance.attention is not None
        return relevance.attention


@dataclass(frozen=True, eq=False)
class Oracle(_Ranking):
    """Relevance from elsewhere, such as the labels of `foveate scorer label`: the ceiling of any scorer.

    Attributes:
        relevance: `[num_visual_tokens]` float32, non-negative.
    """

    relevance: np.ndarray = field(repr=False)
    name: ClassVar[str] = "oracle"

    def weights(self, relevance: Relevance) -> np.ndarray:
        if self.relevance.shape != (len(relevance),):
            raise RequestError(
                f"the oracle has relevance for {self.relevance.shape} visual tokens, the request has {len(relevance)}. "
                "Give the labels of this very sample."
            )
        return self.relevance

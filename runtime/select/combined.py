"""Selectors that weigh the trained scorer's scores against redundancy among the kept tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.runtime.select.base import Relevance
from foveate.runtime.select.diversity import check_weight, cosine, greedy_dpp
from foveate.runtime.select.scores import Learned


@dataclass(frozen=True)
class LearnedMMR(Learned):
    """Maximal marginal relevance over the learned scores.

    Each step keeps the token with the highest `weight * rank - (1 - weight) * (highest cosine to a kept token)`; the first one
    has no kept token to be similar to. `rank` is the share of the tokens that score lower, 0 to 1. A softmax spans orders of
    magnitude: divided by their maximum nearly all scores would be 0 beside a cosine, and of their logarithms the lowest, which
    means little, would set the scale. Ranks are the same for every sharpness of the softmax, so one weight fits all images.
    Source: Carbonell and Goldstein, SIGIR 1998.

    Attributes:
        weight: 0 (diversity alone) to 1 (the same as `Learned`).

    Raises:
        OptionError: a weight out of its range.
    """

    weight: float = 0.5
    name: ClassVar[str] = "learned-mmr"

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        worth = self.weight * _ranks(self.weights(relevance))
        similarity = cosine(relevance.visual_embeds).astype(np.float32)
        kept = np.zeros(len(relevance), bool)
        nearest = np.full(len(relevance), -1.0)
        marginal = worth
        for _ in range(count):
            token = np.where(kept, -np.inf, marginal).argmax()
            kept[token] = True
            np.maximum(nearest, similarity[token], out=nearest)
            marginal = worth - (1 - self.weight) * nearest
        return np.flatnonzero(kept)


@dataclass(frozen=True)
class LearnedDPP(Learned):
    """The most probable set of a determinantal point process whose qualities are the learned scores; greedy.

    Each step keeps the token with the highest `(1 - weight) log gain + weight log score`; the gain is the factor by which the
    determinant of the kept tokens' cosines `L` grows. That is the kernel `diag(q) L diag(q)` with
    `q = score ** (weight / (2 - 2 weight))`. In logarithms a softmax that spans orders of magnitude is a range of logits, and a
    factor common to all scores changes no choice, so nothing is scaled by an extreme value. Tokens of score 0 come last.
    Source: Chen et al., arXiv 1709.05135.

    Attributes:
        weight: 0 (diversity alone) to 1 (the scores, but what the kept tokens span comes last).

    Raises:
        OptionError: a weight out of its range.
    """

    weight: float = 0.5
    name: ClassVar[str] = "learned-dpp"

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        kernel = cosine(relevance.visual_embeds)
        return np.sort(greedy_dpp(kernel, self.weights(relevance), count, self.weight))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """`[tokens]` float64, 0 to 1: the share of the other tokens that score lower."""
    return np.searchsorted(np.sort(scores), scores) / max(len(scores) - 1, 1)

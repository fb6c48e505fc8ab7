"""Selectors that keep tokens which differ from one another, without training."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import numpy as np

from foveate.engines.errors import OptionError
from foveate.runtime.select.base import Relevance, Selector, top_k
from foveate.runtime.select.spatial import split_frames

SPENT = 1e-9
"""Share of a token's own kernel entry below which what is left of it is rounding error."""


@dataclass(frozen=True)
class DivPrune(Selector):
    """Max-min diversity: the token whose nearest neighbour is farthest, then again and again the one farthest from the kept.

    Distance is 1 - cosine. Source: Alvar et al., arXiv 2503.02175, on the tokens after the projector as there.
    """

    name: ClassVar[str] = "divprune"

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        # In float32, so that rounding errors of float64 break no ties; the same below.
        distance = 1 - cosine(relevance.visual_embeds).astype(np.float32)
        np.fill_diagonal(distance, np.inf)
        kept = np.empty(count, np.int64)
        token = distance.min(axis=0).argmax()
        nearest = np.full(len(relevance), np.inf, np.float32)
        for step in range(count):
            kept[step] = token
            np.minimum(nearest, distance[token], out=nearest)
            nearest[token] = -np.inf
            token = nearest.argmax()
        return np.sort(kept)


@dataclass(frozen=True)
class CDPruner(Selector):
    """The most probable set of a determinantal point process, conditioned on the instruction; greedy, over all visual tokens.

    The kernel is `(1 - weight) L + weight diag(r) L diag(r)` with `L` the cosines between visual tokens and `r` their mean
    cosine with the instruction's tokens, scaled to 0..1. Source: Zhang et al., arXiv 2506.10967, whose form this is, at
    `weight` 1. The authors negate the cosine for embeddings of CLIP; here both sides are embeddings of the LLM, so `r` grows
    with it, as in the paper.

    Attributes:
        weight: 0 (diversity alone) to 1.

    Raises:
        OptionError: a weight out of its range.
    """

    weight: float = 1.0
    name: ClassVar[str] = "cdpruner"
    needs: ClassVar[frozenset[str]] = frozenset({"text_embeds"})

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        return self.most_probable(relevance.visual_embeds, _asked(relevance), count)

    def most_probable(self, embeds: np.ndarray, asked: np.ndarray, count: int) -> np.ndarray:
        """`[count]` int64, ascending: which of `embeds [tokens, hidden_size]` stay, of relevance `asked [tokens]`, 0..1."""
        kernel = cosine(embeds)
        kernel *= (1 - self.weight) + self.weight * np.outer(asked, asked)
        return np.sort(greedy_dpp(kernel, asked, count))


@dataclass(frozen=True)
class CDPrunerOpenVINO(CDPruner):
    """CDPruner as OpenVINO GenAI has it: half of its kernel is not conditioned on the instruction."""

    weight: float = 0.5
    name: ClassVar[str] = "cdpruner-openvino"


@dataclass(frozen=True)
class CDPrunerFrames(CDPruner):
    """CDPruner within each picture and frame, as its authors prune several pictures: tokens compete with their own frame only.

    Frames share the budget in proportion to their tokens (`split_frames`). As in the authors' code, `r` is scaled over all
    pictures together.

    Raises:
        RequestError: on a call, grids that do not cover the visual tokens.
    """

    name: ClassVar[str] = "cdpruner-frames"
    needs_all: ClassVar[bool] = True

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        asked, kept = _asked(relevance), []
        for frame in split_frames(relevance, count, self.name):
            own = self.scale(asked[frame.tokens])
            kept.append(frame.first + self.most_probable(relevance.visual_embeds[frame.tokens], own, frame.share))
        return np.concatenate(kept)

    def scale(self, asked: np.ndarray) -> np.ndarray:
        """`[tokens]`, 0..1: the relevance of a frame's tokens, of those that were scaled over all frames."""
        return asked


@dataclass(frozen=True)
class CDPrunerOpenVINOFrames(CDPrunerFrames):
    """CDPruner as OpenVINO GenAI has it with `enable_frame_chunking`: its kernel within each frame, `r` scaled there too."""

    weight: float = 0.5
    name: ClassVar[str] = "cdpruner-openvino-frames"

    def scale(self, asked: np.ndarray) -> np.ndarray:
        return _min_max(asked)


def _asked(relevance: Relevance) -> np.ndarray:
    """`[num_visual_tokens]` float32, 0..1: mean cosine of each visual token with the instruction's tokens."""
    assert relevance.text_embeds is not None
    return _min_max((unit(relevance.visual_embeds) @ unit(relevance.text_embeds).mean(axis=0)).astype(np.float32))


@dataclass(frozen=True)
class DART(Selector):
    """Pivots by L1 norm, and for each of them its least similar tokens, so that nothing kept duplicates a pivot.

    The pivots share the rest of the count evenly, the first ones one more, and choose in the order of their norms; a chosen
    token is no candidate any more. Source: Wen et al., arXiv 2502.11494. There, keys of LLM layer 2 give the norms, its hidden
    states the cosines, and 4 visual and 4 text tokens are pivots; before the LLM there are only visual embeddings, so they
    serve for all.

    Attributes:
        pivots: how many tokens are pivots, at least 1; with a smaller count all that stay are pivots.

    Raises:
        OptionError: a number of pivots below 1.
    """

    pivots: int = 8
    name: ClassVar[str] = "dart"

    def __post_init__(self) -> None:
        if not isinstance(self.pivots, Integral) or self.pivots < 1:
            raise OptionError(
                f"the pivots of selector 'dart' are {self.pivots!r}, expected a whole number of at least 1. Use 8."
            )

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        norms = np.abs(relevance.visual_embeds).sum(axis=1, dtype=np.float64)
        pivots = np.argsort(-norms, kind="stable")[: min(self.pivots, count)]
        units = unit(relevance.visual_embeds)
        similarity = (units[pivots] @ units.T).astype(np.float32)
        kept = np.zeros(len(relevance), bool)
        kept[pivots] = True
        for pivot, share in enumerate(np.array_split(np.arange(count - len(pivots)), len(pivots))):
            kept[top_k(np.where(kept, -np.inf, -similarity[pivot]), len(share))] = True
        return np.flatnonzero(kept)


def unit(embeds: np.ndarray) -> np.ndarray:
    """`[tokens, hidden_size]` float64: rows of length 1; a zero row stays zero, so its cosine is 0."""
    rows = embeds.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms > 0, norms, 1)
    return rows


def cosine(embeds: np.ndarray) -> np.ndarray:
    """`[tokens, tokens]` float64: cosine of the angle between rows of `embeds [tokens, hidden_size]`."""
    rows = unit(embeds)
    return np.asarray(rows @ rows.T)


def greedy_dpp(kernel: np.ndarray, relevance: np.ndarray, count: int, weight: float = 0.0) -> np.ndarray:
    """Greedy search for the most probable set of a determinantal point process.

    Each step keeps the token with the highest `(1 - weight) log gain + weight log relevance`, where the gain is the factor by
    which the determinant of the kept kernel grows. When the kept tokens span all others, or none that is left has relevance,
    the highest relevance fills up. Source: Chen et al., arXiv 1709.05135, algorithm 1.

    Args:
        kernel: `[tokens, tokens]` float64, positive semi-definite.
        relevance: `[tokens]`, non-negative.
        count: how many tokens to keep.
        weight: 0 (the determinant alone) to 1.

    Returns:
        `[count]` int64, in the order in which they were kept; among equals the lower index first.
    """
    prior = weight * np.log(np.maximum(relevance, np.finfo(np.float64).tiny), dtype=np.float64)
    gain = kernel.diagonal().copy()
    floor = np.where((relevance > 0) | (weight == 0), SPENT * gain, np.inf)
    factors = np.empty((count, len(kernel)))
    kept = np.empty(count, np.int64)
    for step in range(count):
        alive = gain > floor
        if not alive.any():
            left = np.setdiff1d(np.arange(len(kernel)), kept[:step])
            kept[step:] = left[np.argsort(-relevance[left], kind="stable")[: count - step]]
            break
        merit = (1 - weight) * np.log(gain, where=alive, out=np.zeros(len(gain))) + prior
        token = kept[step] = np.where(alive, merit, -np.inf).round(6).argmax()  # rounding errors break no ties
        factors[step] = (kernel[token] - factors[:step, token] @ factors[:step]) / np.sqrt(gain[token])
        gain -= factors[step] ** 2
        gain[token] = 0
    return kept


def check_weight(selector: str, weight: float) -> None:
    """Raises OptionError unless 0 <= weight <= 1."""
    if not isinstance(weight, Real) or not 0 <= weight <= 1:
        raise OptionError(f"the weight of selector '{selector}' is {weight!r}, expected a number from 0 to 1. Use 0.5.")


def _min_max(values: np.ndarray) -> np.ndarray:
    """`values [tokens]` float32 scaled to 0..1; all 1 where they differ by rounding errors only."""
    low, span = values.min(), np.ptp(values)
    return (values - low) / span if span > np.finfo(np.float32).resolution else np.ones_like(values)

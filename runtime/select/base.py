"""What a selector is, and the decision that an answer reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from foveate.engines import Array, BackendError, Grid, RequestError
from foveate.runtime.budget import Budget


@dataclass(frozen=True, eq=False)
class Relevance:
    """What a selector chooses by. The pipeline computes what the selector's `needs` name; the rest is None.

    Attributes:
        embeds: `[num_visual_tokens, hidden_size]`, where the vision graph left them; selectors read `visual_embeds`.
        grids: of each image or video, in order; their cells are the visual tokens.
        scores: `[num_visual_tokens]` float32 of the bundle's scorer, non-negative, higher = keep.
        attention: `[num_visual_tokens]` float32, layer-0 attention, mean over heads and instruction rows.
        text_embeds: `[instruction_tokens, hidden_size]` float32, embeddings of the instruction.
        seed: a number from 0 that the whole request gives, prompt and pixels: the same for the same question.
    """

    embeds: Array
    grids: Sequence[Grid] = ()
    scores: np.ndarray | None = None
    attention: np.ndarray | None = None
    text_embeds: np.ndarray | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.embeds)

    @cached_property
    def visual_embeds(self) -> np.ndarray:
        """`[num_visual_tokens, hidden_size]` float32 on the host, brought there when a selector first asks for it."""
        return np.asarray(self.embeds, np.float32)


class Selector:
    """A way to choose the visual tokens that stay. Subclasses are frozen dataclasses, so a selector is a value."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Which of `scores`, `attention`, `text_embeds` and `seed` it reads."""
    needs_all: ClassVar[bool] = False
    """Whether it can't do with some of the visual tokens of a picture, as without redundant ones."""

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        """The indices of the `count` visual tokens to keep: `[count]` int64, ascending, unique."""
        raise NotImplementedError

    def weights(self, relevance: Relevance) -> np.ndarray | None:
        """`[num_visual_tokens]`, non-negative: what each token is worth to this selector; None where it does not rank."""
        return None

    def embeds(self, relevance: Relevance, keep_indices: np.ndarray) -> Array:
        """`[num_visual_tokens, hidden_size]`: what the LLM gets; of these rows it sees those of `keep_indices`."""
        return relevance.embeds


Policy = Callable[[Relevance, int], np.ndarray]
"""A selector as a plain function; it gets the scores."""


@dataclass(frozen=True)
class Custom(Selector):
    """A plain function as a selector."""

    policy: Policy
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.policy, "__name__", type(self.policy).__name__)

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        return np.asarray(self.policy(relevance, count))

    def weights(self, relevance: Relevance) -> np.ndarray | None:
        return relevance.scores


@dataclass(frozen=True, eq=False)
class Selection:
    """What was decided about the visual tokens of a request.

    Attributes:
        keep_indices: `[kept]` int64, ascending, counted over all images of the request.
        num_visual_tokens: how many there were.
        selector: name of the selector, `all` where none was asked.
        reason: why nothing was pruned, and what else is worth knowing; empty in the ordinary case.
        scores: `[num_visual_tokens]` float32, what each token was worth to the selector; None where it ranked none.
    """

    keep_indices: np.ndarray
    num_visual_tokens: int
    selector: str
    reason: str = ""
    scores: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON."""
        return {
            "keep_indices": self.keep_indices.tolist(),
            "num_visual_tokens": self.num_visual_tokens,
            "selector": self.selector,
            "reason": self.reason,
            "scores": None if self.scores is None else self.scores.tolist(),
        }


def top_k(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` highest scores, ascending; among equal scores the lower index stays."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def keep_everything(num_visual_tokens: int, reason: str, scores: np.ndarray | None = None) -> Selection:
    """The selection that prunes nothing."""
    return Selection(np.arange(num_visual_tokens), num_visual_tokens, "all", reason, scores)


def select(relevance: Relevance, budget: Budget, selector: Selector, note: str = "") -> Selection:
    """Picks the visual tokens that stay.

    Args:
        relevance: what the selector needs.
        budget: how many stay.
        selector: which stay.
        note: becomes the selection's reason.

    Raises:
        BackendError: scores that are not finite.
        RequestError: a selector without weights where the budget is a `mass`, or one that breaks its contract.
    """
    weights = selector.weights(relevance)
    if weights is not None and not np.isfinite(weights).all():
        raise BackendError(
            "the score graph gave values that are not finite. Keep all visual tokens, and export the bundle again."
        )
    if weights is None and budget.mass is not None:
        raise RequestError(f"the budget is a mass, and selector '{selector.name}' has no scores to sum. Set keep instead.")
    count = budget.count(np.ones(len(relevance)) if weights is None else weights)
    indices = _check_indices(np.asarray(selector(relevance, count)), count, len(relevance), selector.name)
    return Selection(indices, len(relevance), selector.name, note, weights)


def _check_indices(indices: np.ndarray, count: int, total: int, selector: str) -> np.ndarray:
    ascending = indices.shape == (count,) and indices.dtype.kind == "i" and bool((np.diff(indices) > 0).all())
    if not ascending or indices[0] < 0 or indices[-1] >= total:
        raise RequestError(
            f"selector '{selector}' did not give {count} ascending indices below {total}. Return np.sort of unique indices."
        )
    return indices.astype(np.int64, copy=False)

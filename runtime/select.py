"""Which visual tokens stay: policies, and the decision that an answer reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.engines import RequestError
from foveate.runtime.budget import Budget


@dataclass(frozen=True, eq=False)
class Relevance:
    """What a policy chooses by.

    Attributes:
        scores: `[num_visual_tokens]` float32, higher = keep.
        visual_embeds: `[num_visual_tokens, hidden_size]` float32.
    """

    scores: np.ndarray
    visual_embeds: np.ndarray


Policy = Callable[[Relevance, int], np.ndarray]
"""Gives the indices of the `count` visual tokens to keep: `[count]` int64, ascending, unique."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What was decided about the visual tokens of a request.

    Attributes:
        keep_indices: `[kept]` int64, ascending, counted over all images of the request.
        num_visual_tokens: how many there were.
        policy: name of the policy, `all` where none was asked.
        reason: why nothing was pruned, and what else is worth knowing; empty in the ordinary case.
        scores: `[num_visual_tokens]` float32; None where scoring was bypassed.
    """

    keep_indices: np.ndarray
    num_visual_tokens: int
    policy: str
    reason: str = ""
    scores: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON."""
        return {
            "keep_indices": self.keep_indices.tolist(),
            "num_visual_tokens": self.num_visual_tokens,
            "policy": self.policy,
            "reason": self.reason,
            "scores": None if self.scores is None else self.scores.tolist(),
        }


def top_k(relevance: Relevance, count: int) -> np.ndarray:
    """The `count` highest scores, ascending by index; among equal scores the lower index stays."""
    return np.sort(np.argsort(-relevance.scores, kind="stable")[:count])


def keep_everything(num_visual_tokens: int, reason: str) -> Selection:
    """The selection that prunes nothing."""
    return Selection(np.arange(num_visual_tokens), num_visual_tokens, "all", reason)


def select(relevance: Relevance, budget: Budget, policy: Policy, logits: bool, note: str = "") -> Selection:
    """Picks the visual tokens that stay.

    Args:
        relevance: scores and embeddings of the visual tokens.
        budget: how many stay.
        policy: which stay.
        logits: the scores go through a softmax before `mass` sums them; else they are weights already.
        note: becomes the selection's reason.

    Raises:
        RequestError: scores that are not finite, or a policy that breaks its contract.
    """
    scores = relevance.scores
    if not np.isfinite(scores).all():
        raise RequestError("the score graph gave values that are not finite. Set keep=1.0, and export the bundle again.")
    count = budget.count(np.exp(scores - scores.max()) if logits else scores)
    name = getattr(policy, "__name__", type(policy).__name__)
    indices = _check_indices(np.asarray(policy(relevance, count)), count, len(scores), name)
    return Selection(indices, len(scores), name, note, scores)


def _check_indices(indices: np.ndarray, count: int, total: int, policy: str) -> np.ndarray:
    ascending = indices.shape == (count,) and indices.dtype.kind == "i" and bool((np.diff(indices) > 0).all())
    if not ascending or indices[0] < 0 or indices[-1] >= total:
        raise RequestError(
            f"policy '{policy}' did not give {count} ascending indices below {total}. Return np.sort of unique indices."
        )
    return indices.astype(np.int64, copy=False)

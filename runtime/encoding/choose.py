"""Which visual tokens the tower computes: a glance at small pictures, its scores, and what the question needs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines import Array
from foveate.runtime.budget import Budget
from foveate.runtime.encoding.cost import is_worth
from foveate.runtime.encoding.glance import check_selector
from foveate.runtime.encoding.outcome import Part
from foveate.runtime.encoding.part import by_visual
from foveate.runtime.encoding.request import AUTO, count_tokens
from foveate.runtime.prepare import Preparer
from foveate.runtime.select import Policy, Relevance, Selector, select
from foveate.runtime.stages import Stopwatch
from foveate.runtime.types import Prepared, Request


@dataclass(frozen=True)
class Stages:
    """What of the pipeline a choice needs.

    Attributes:
        preparer: makes the small pictures.
        selector: what a request's `select` means.
        vision: see `Pipeline.vision`.
        score: see `Pipeline.score`.
        knows: whether the vision cache has all visual tokens of these inputs of the vision graph.
        wait: for what runs behind the host's back.
    """

    preparer: Preparer
    selector: Callable[[Selector | Policy | str | None], Selector]
    vision: Callable[[Prepared], Array]
    score: Callable[[Prepared, Array, frozenset[str]], Relevance]
    knows: Callable[[Mapping[str, np.ndarray]], bool]
    wait: Callable[[], None]


def choose(request: Request, prepared: Prepared, stages: Stages, stopwatch: Stopwatch) -> Part | str:
    """The visual tokens that the tower computes for a request that sets `encode`; or why it has to compute all.

    Raises:
        RequestError: options that can't be had together.
    """
    total, encode = prepared.num_visual_tokens, request.encode
    assert encode is not None
    if not total:
        return "the request has no image"
    count = count_tokens(encode, request.budget, total)
    if isinstance(count, str):
        return count
    if count >= total:
        return f"encode covers all {total} visual tokens"
    if encode == AUTO and all(stages.knows(visual.feeds) for visual in prepared.visuals):
        return "all visual tokens were computed for another question"
    selector = stages.selector(request.select)
    check_selector(selector)
    with stopwatch("glance"):
        small = stages.preparer.glance(request, prepared)
        if isinstance(small, str):
            return small
        if encode == AUTO and not is_worth(small.visuals, count, prepared.visuals):
            return f"a glance and {count} of {total} visual tokens are hardly less work"
        glance_embeds = stages.vision(small)
        stages.wait()
    with stopwatch("score"):
        seen = selector.weights(stages.score(small, glance_embeds, selector.needs))
        assert seen is not None  # `check_selector` saw to it
        scores = stages.preparer.enlarge(seen, small.visuals, prepared.visuals)
    with stopwatch("select"):
        # Without grids: before the tower the periphery of a clip is that of an image, half of the budget would be too much.
        found = Relevance(np.empty((total, 0)), (), scores, scores)
        tokens = select(found, Budget(tokens=count), selector).keep_indices
    known = by_visual(glance_embeds, small.visuals) if stages.preparer.glance_stays else ()
    return Part(tokens, scores, selector.name, total, small.num_visual_tokens, small.pictures, known)

"""Selectors that look at what changes from frame to frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.engines import Grid, RequestError
from foveate.runtime.select.base import Relevance, Selector, top_k
from foveate.runtime.select.diversity import unit
from foveate.runtime.select.spatial import check_grids


@dataclass(frozen=True)
class EVS(Selector):
    """Efficient video sampling: tokens that differ most from the same place one frame earlier.

    The distance is 1 - cosine; a first frame has none before it, so it stays first (in a small budget from its start). Each
    video is compared within itself, and the budget is one for all; an image counts as a first frame. Source: Bagrov et al.,
    arXiv 2510.14624.

    Raises:
        RequestError: on a call, no video, or grids that do not cover the visual tokens.
    """

    name: ClassVar[str] = "evs"
    needs_all: ClassVar[bool] = True

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        check_grids(relevance, self.name)
        if all(frames < 2 for frames, _, _ in relevance.grids):
            raise RequestError(
                "selector 'evs' compares frames of a video, and this request has only images. "
                "Select by another one, such as 'attention'."
            )
        ends = np.cumsum([math.prod(grid) for grid in relevance.grids])
        clips = np.split(relevance.visual_embeds, ends[:-1])
        return top_k(np.concatenate([_change(*pair) for pair in zip(clips, relevance.grids, strict=True)]), count)


def _change(embeds: np.ndarray, grid: Grid) -> np.ndarray:
    """`[frames * rows * columns]` float32: distance of each token to the frame before, infinite in the first frame."""
    frames = unit(embeds).reshape(grid[0], grid[1] * grid[2], -1)
    similarity = np.einsum("fth,fth->ft", frames[1:], frames[:-1])
    # In float32, so that tokens that do not change are equal whatever the rounding errors.
    return np.concatenate([np.full(frames.shape[1], np.inf, np.float32), 1 - similarity.astype(np.float32).ravel()])

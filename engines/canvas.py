"""Visual tokens as cells of a canvas, on which the scorer's two-dimensional network works."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Grid = tuple[int, int, int]
"""Frames, rows and columns of the visual tokens of one image (one frame) or video; tokens go frame by frame, row by row."""


def canvas_feeds(grids: Sequence[Grid]) -> dict[str, np.ndarray]:
    """The inputs of the `score` graph that say where each visual token lies.

    Every frame of every image or video has a page of its own; pages are as large as the largest frame, so frames of
    several sizes fit.

    Returns:
        `canvas_mask [pages, rows, columns]` float32, 1 where a token lies, and `visual_cells [visual_tokens]` int64, the
        place of each token counted over the flattened canvas.
    """
    pages = np.repeat(np.array([grid[1:] for grid in grids], np.int64), [grid[0] for grid in grids], axis=0)
    rows, columns = pages.max(axis=0)
    taken = (np.arange(rows)[:, None] < pages[:, :1, None]) & (np.arange(columns) < pages[:, 1:, None])
    return {"canvas_mask": taken.astype(np.float32), "visual_cells": np.flatnonzero(taken)}

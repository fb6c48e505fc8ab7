"""Which visual tokens lie beside each other: what the scorer's two-dimensional network needs to know of the grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Grid = tuple[int, int, int]
"""Frames, rows and columns of the visual tokens of one image (one frame) or video; tokens go frame by frame, row by row."""

NEIGHBOURS = 9


def find_neighbours(grids: Sequence[Grid], present: np.ndarray | None = None) -> np.ndarray:
    """The 3 x 3 cells around each visual token, within its own frame.

    Args:
        grids: of all visual tokens.
        present: int64, ascending, the visual tokens that there are, which are counted anew; None for all.

    Returns:
        `[visual_tokens, 9]` int64: numbers of the visual tokens, row by row, the token itself in the middle;
        `visual_tokens` where there is none, as where the grid ends.
    """
    total = sum(frames * rows * columns for frames, rows, columns in grids)
    parts, first = [], 0
    for frames, rows, columns in grids:
        numbers = first + np.arange(frames * rows * columns).reshape(frames, rows, columns)
        padded = np.pad(numbers, ((0, 0), (1, 1), (1, 1)), constant_values=total)
        around = [padded[:, row : row + rows, column : column + columns] for row in range(3) for column in range(3)]
        parts.append(np.stack(around, axis=-1).reshape(-1, NEIGHBOURS))
        first += frames * rows * columns
    around_all = np.concatenate(parts) if parts else np.empty((0, NEIGHBOURS), np.int64)
    if present is None:
        return around_all
    counted: np.ndarray = np.full(total + 1, len(present), np.int64)
    counted[present] = np.arange(len(present))
    return np.asarray(counted[around_all[present]])

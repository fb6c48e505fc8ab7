"""Bilinear interpolation as sums of cells, for graphs that gather."""

from __future__ import annotations

import numpy as np

from foveate.engines.format.processors.llava_onevision import TAPS


def single(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[n, TAPS]` int64 cells and float32 weights of values that are one cell each; `cells` may have any shape."""
    indices = np.repeat(cells.reshape(-1, 1), TAPS, axis=1)
    weights = np.zeros(indices.shape, np.float32)
    weights[:, 0] = 1
    return indices, weights


def bilinear(cells: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The grid `cells [height, width]`, resized to `rows x columns`.

    As `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` without antialiasing computes it, in float32.

    Returns:
        `[rows * columns, TAPS]` int64 cells and float32 weights; each value is the weighted sum of its cells.
    """
    above, below, from_above, from_below = _axis(cells.shape[0], rows)
    left, right, from_left, from_right = _axis(cells.shape[1], columns)
    corners = [(y, x) for y in ((above, from_above), (below, from_below)) for x in ((left, from_left), (right, from_right))]
    indices = [cells[np.ix_(row, column)] for (row, _), (column, _) in corners]
    weights = [np.outer(vertical, horizontal) for (_, vertical), (_, horizontal) in corners]
    return np.stack(indices, axis=-1).reshape(-1, TAPS), np.stack(weights, axis=-1).reshape(-1, TAPS)


def _axis(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbours of each new place along one axis, and their float32 weights."""
    scale = np.float64(np.float32(size) / np.float32(new_size))
    # Rounded to float32 once, as torch's fused multiply-add does.
    places = np.maximum(scale * (np.arange(new_size) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(places.astype(np.int64), size - 1)
    to_second = np.clip(places - first.astype(np.float32), np.float32(0), np.float32(1))
    return first, np.minimum(first + 1, size - 1), np.float32(1) - to_second, to_second

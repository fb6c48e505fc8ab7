"""What each patch of features shows: the labels of stage `vision` and the letters of stage `text`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.scenes.world import COLOURS, SHAPES, TEXTS, Scene

_COVERED_SHARE = 0.2


@dataclass(frozen=True)
class View:
    """The part of a scene that one crop or frame shows, in cells, and the grid of features over it.

    Attributes:
        left, top, width, height: of the part; it may reach past the scene.
        rows, columns: of the features.
        by_column: whether features are counted column by column.
    """

    left: float
    top: float
    width: float
    height: float
    rows: int
    columns: int
    by_column: bool = False


def label_cells(crops: Sequence[Sequence[tuple[Scene, View]]]) -> dict[str, torch.Tensor]:
    """Labels of the features of a batch of tasks, each a list of crops.

    Returns:
        `shape`, `colour`, `text`, `centre` int64 `[batch, features]`, -1 where there is no object, and `where` float32
        `[batch, features, 2]`, the centre of the object within the view, from -1 to 1. The features of all crops follow
        one another.
    """
    tasks = [[_label(scene, view) for scene, view in task] for task in crops]
    names = tasks[0][0]
    return {
        name: torch.from_numpy(np.stack([np.concatenate([crop[name] for crop in task]) for task in tasks])) for name in names
    }


def _label(scene: Scene, view: View) -> dict[str, np.ndarray]:
    """A feature belongs to the object that covers most of it, if that is a fifth of it at least."""
    rows, columns = view.rows, view.columns
    labels = {name: np.full((rows, columns), -1, np.int64) for name in ("shape", "colour", "text", "centre")}
    where = np.zeros((rows, columns, 2), np.float32)
    best, owner = np.full((rows, columns), _COVERED_SHARE), np.full((rows, columns), -1)
    top, left = np.arange(rows)[:, None], np.arange(columns)[None]
    scale_x, scale_y = columns / view.width, rows / view.height
    for number, item in enumerate(scene.objects):
        x, y = (item.x - view.left) * scale_x, (item.y - view.top) * scale_y
        half_x, half_y = item.size / 2 * scale_x, item.size / 2 * scale_y
        high = np.clip(np.minimum(y + half_y, top + 1) - np.maximum(y - half_y, top), 0, 1)
        wide = np.clip(np.minimum(x + half_x, left + 1) - np.maximum(x - half_x, left), 0, 1)
        covered = high * wide
        owner = np.where(covered > best, number, owner)
        best = np.maximum(best, covered)
    for number, item in enumerate(scene.objects):
        mine = owner == number
        x, y = (item.x - view.left) * scale_x, (item.y - view.top) * scale_y
        labels["shape"][mine] = SHAPES.index(item.shape)
        labels["colour"][mine] = list(COLOURS).index(item.colour)
        labels["text"][mine] = TEXTS.index(item.text)
        labels["centre"][mine] = 0
        if 0 <= x < columns and 0 <= y < rows and mine[int(y), int(x)]:
            labels["centre"][int(y), int(x)] = 1
        where[mine] = np.clip(x / columns * 2 - 1, -1.5, 1.5), np.clip(y / rows * 2 - 1, -1.5, 1.5)
    values = {**labels, "where": where}
    return {
        name: (a.swapaxes(0, 1) if view.by_column else a).reshape(rows * columns, *a.shape[2:]) for name, a in values.items()
    }

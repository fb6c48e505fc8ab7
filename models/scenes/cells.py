"""What each patch of features shows: the labels of stage `vision` and the letters of stage `text`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.documents.page import Page
from models.scenes.world import COLOURS, SHAPES, TEXTS, Scene

_OBJECT_SHARE, _TEXT_SHARE = 0.2, 0.1
"""Of a feature, what an object or a text has to cover for it to be its own."""


@dataclass(frozen=True)
class View:
    """The part of a scene or page that one crop or frame shows, in cells, and the grid of features over it.

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


def label_cells(crops: Sequence[Sequence[tuple[Scene | Page, View]]]) -> dict[str, torch.Tensor]:
    """Labels of the features of a batch of tasks, each a list of crops.

    Returns:
        `shape`, `colour`, `text`, `row`, `column`, `centre`, `item` int64 `[batch, features]`, -1 where there is no object or
        printed text, and `where` float32 `[batch, features, 2]`, the centre of the object within the view, from -1 to 1.
        `row` and `column` are the texts that name a printed value, `item` is the number of the object. The features of all
        crops follow one another.
    """
    tasks = [[_label(scene, view) for scene, view in task] for task in crops]
    names = tasks[0][0]
    return {
        name: torch.from_numpy(np.stack([np.concatenate([crop[name] for crop in task]) for task in tasks])) for name in names
    }


def _label(scene: Scene | Page, view: View) -> dict[str, np.ndarray]:
    """A feature belongs to the object that covers most of it, if that is enough of it."""
    rows, columns = view.rows, view.columns
    edges, facts, least = _read_page(scene) if isinstance(scene, Page) else _read_scene(scene)
    edges = (edges - (view.left, view.top, view.left, view.top)) * np.tile((columns / view.width, rows / view.height), 2)
    owner = _own(edges, rows, columns, least)
    values = {name: np.append(numbers, -1)[owner] for name, numbers in facts.items()}
    values["item"] = owner
    centres = (edges[:, :2] + edges[:, 2:]) / 2
    values["centre"] = np.where(owner >= 0, 0, -1)
    for number, (x, y) in enumerate(centres):
        if 0 <= x < columns and 0 <= y < rows and owner[int(y), int(x)] == number:
            values["centre"][int(y), int(x)] = 1
    where = np.clip(centres / (columns, rows) * 2 - 1, -1.5, 1.5)
    values["where"] = np.vstack([where, np.zeros((1, 2))])[owner].astype(np.float32)
    return {
        name: (a.swapaxes(0, 1) if view.by_column else a).reshape(rows * columns, *a.shape[2:]) for name, a in values.items()
    }


def _read_scene(scene: Scene) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Edges of objects in cells `[K, 4]`, what they are, and what they have to cover."""
    objects = scene.objects
    edges = [(o.x - o.size / 2, o.y - o.size / 2, o.x + o.size / 2, o.y + o.size / 2) for o in objects]
    facts = {
        "shape": [SHAPES.index(o.shape) for o in objects],
        "colour": [list(COLOURS).index(o.colour) for o in objects],
        "text": [TEXTS.index(o.text) for o in objects],
        "row": [0] * len(objects),
        "column": [0] * len(objects),
    }
    return np.array(edges).reshape(-1, 4), _as_arrays(facts), _OBJECT_SHARE


def _read_page(page: Page) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """The same of the texts and buttons of a page."""
    scale = np.tile((page.columns / page.width, page.rows / page.height), 2)
    facts = {
        "shape": [-1] * len(page.items),
        "colour": [list(COLOURS).index(item.colour) if item.colour else -1 for item in page.items],
        "text": [TEXTS.index(item.text) for item in page.items],
        "row": [TEXTS.index(item.row) for item in page.items],
        "column": [TEXTS.index(item.column) for item in page.items],
    }
    edges = np.array([(item.left, item.top, item.right, item.bottom) for item in page.items]).reshape(-1, 4) * scale
    return edges, _as_arrays(facts), _TEXT_SHARE


def _as_arrays(facts: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {name: np.array(numbers, np.int64) for name, numbers in facts.items()}


def _own(edges: np.ndarray, rows: int, columns: int, least: float) -> np.ndarray:
    """int64 `[rows, columns]`, which of the rectangles `edges [K, 4]` covers most of a cell; -1 where none covers `least`."""
    left, top, right, bottom = (side[:, None] for side in edges.T)
    x, y = np.arange(columns), np.arange(rows)
    wide = np.clip(np.minimum(right, x + 1) - np.maximum(left, x), 0, 1)
    high = np.clip(np.minimum(bottom, y + 1) - np.maximum(top, y), 0, 1)
    covered = np.concatenate([np.full((1, rows, columns), least), high[:, :, None] * wide[:, None]])
    return covered.argmax(axis=0) - 1

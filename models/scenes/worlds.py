"""What the images and clips of each reference checkpoint look like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.scenes.tasks import World
from models.scenes.world import DIGITS, LETTERS, OBJECT_SIZES, QUESTION_TYPES, WORDS, sample_grid

_GRIDS = np.random.default_rng(0)
WORLDS = {
    "llava-onevision-tiny": World(
        grids=((4, 4), (4, 8), (8, 4), (8, 8), (8, 8), (8, 8)),
        cell_pixels=28,
        jitter=12,
        several=(4, 4),
        clip=(6, 6),
        clip_pixels=20,
        frames=(6, 6),
        types=("colour", "shape", "digit", "position", "count", "relation"),
        texts=(DIGITS,),
        shares=(0.55, 0.15, 0.3),
    ),
    "qwen2-vl-tiny": World(
        grids=tuple(sample_grid(_GRIDS) for _ in range(1000)),
        cell_pixels=28,
        jitter=13,
        several=(8, 8),
        clip=(8, 8),
        clip_pixels=28,
        frames=(5, 8),
        types=QUESTION_TYPES,
        texts=(DIGITS, LETTERS, WORDS),
        shares=(0.4, 0.15, 0.45),
    ),
    "vila1.5-tiny": World(
        grids=((7, 8), (8, 7), (8, 8), (8, 9), (9, 8)),
        cell_pixels=28,
        jitter=12,
        several=(7, 7),
        clip=(6, 6),
        clip_pixels=40,
        frames=(4, 5),
        types=("colour", "shape", "digit", "position", "count", "relation"),
        texts=(DIGITS,),
        shares=(0.4, 0.15, 0.45),
    ),
}
"""By the name of the checkpoint."""


def _grids(count: int, fewest: int, most: int) -> list[tuple[int, int]]:
    return [sample_grid(_GRIDS, fewest, most) for _ in range(count)]


DENSE_WORLD = replace(
    WORLDS["qwen2-vl-tiny"],
    grids=(*_grids(850, 64, 256), *_grids(150, 256, 700)),
    sizes=(OBJECT_SIZES, OBJECT_SIZES, (0.8, 2.0), (1.5, 4.0)),
    shrinks=(1, 1, 1, 1, 2, 2, 3),
    pages=(*_grids(700, 64, 160), *_grids(200, 160, 400), *_grids(100, 400, 900)),
)
"""Of the checkpoints that learn documents: larger images and small ones, objects of many sizes, pages."""

"""Scenes as splits, each a pure function of (split, seed, index)."""

from __future__ import annotations

import numpy as np

from models.scenes.world import Question, Scene, ask, sample_grid, sample_scene

SPLITS = {"train": 0, "validation": 1, "heldout": 2, "heldout-large": 3, "validation-large": 4}
"""Every split draws from generators of its own; `heldout*` are never read by training or tuning."""


def rng_of(split: str, seed: int, index: int, *more: int) -> np.random.Generator:
    """The generator of one sample; no two splits, seeds, indices or further numbers share one."""
    return np.random.default_rng(np.random.SeedSequence([SPLITS[split], seed, index, *more]))


def sample(split: str, seed: int, index: int, questions: int = 1) -> tuple[Scene, list[Question]]:
    """Scene number `index` of a split and questions about it. Those named `-large` have 512 to 1,024 visual tokens."""
    rng = rng_of(split, seed, index)
    grid = sample_grid(rng, 512, 1024) if split.endswith("-large") else sample_grid(rng)
    scene = sample_scene(rng, grid)
    return scene, ask(rng, scene, questions)

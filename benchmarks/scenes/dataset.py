"""Scenes as splits and as training batches, each a pure function of (split, seed, index)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.scenes.render import render
from benchmarks.scenes.world import (
    COLOURS,
    DIGITS,
    LETTERS,
    QUESTION_TYPES,
    SHAPES,
    WORDS,
    Question,
    Scene,
    ask,
    sample_grid,
    sample_scene,
)

SPLITS = {"train": 0, "validation": 1, "heldout": 2, "heldout-large": 3, "validation-large": 4}
"""Every split draws from generators of its own; `heldout*` are never read by training or tuning."""
TEXTS = ("", *DIGITS, *LETTERS, *WORDS)
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE
IGNORE = -100
_COVERED_SHARE = 0.2


def rng_of(split: str, seed: int, index: int) -> np.random.Generator:
    """The generator of one sample; no two splits, seeds or indices share one."""
    return np.random.default_rng(np.random.SeedSequence([SPLITS[split], seed, index]))


def sample(split: str, seed: int, index: int, questions: int = 1) -> tuple[Scene, list[Question]]:
    """Scene number `index` of a split and questions about it. Those named `-large` have 512 to 1,024 visual tokens."""
    rng = rng_of(split, seed, index)
    grid = sample_grid(rng, 512, 1024) if split.endswith("-large") else sample_grid(rng)
    scene = sample_scene(rng, grid)
    return scene, ask(rng, scene, questions)


@dataclass
class Batch:
    """Scenes of one grid with several questions each, all in one sequence per scene.

    A sequence is `prefix, image, suffix, question 1, question 2, ...`; `segments` is 0 for what every question
    sees and k for the tokens of question k, so each question is answered as if it stood alone.
    """

    rows: int
    columns: int
    patches: torch.Tensor | None
    """uint8 `[batch, 4 * rows * columns, 3 * 14 * 14]`, in the order of the image processor; None without pixels."""
    input_ids: torch.Tensor
    """int64 `[batch, S]`; the image placeholders are in it."""
    labels: torch.Tensor
    """int64 `[batch, S]`, the token to predict at each place or `IGNORE`."""
    segments: torch.Tensor
    positions: torch.Tensor
    """int64 `[3, batch, S]`, M-RoPE positions."""
    types: torch.Tensor
    """int64 `[batch, Q]`, the type of each question or -1."""
    cells: dict[str, torch.Tensor]
    """What each visual token shows: `shape`, `colour`, `text`, `centre` int64 `[batch, N]`, `where` float32 `[batch, N, 2]`."""


def make_batch(
    tokenizer: Tokenizer,
    split: str,
    seed: int,
    index: int,
    scenes: int,
    questions: int,
    pixels: bool = True,
    max_tokens: int = 256,
) -> Batch:
    """Batch number `index`: `scenes` scenes of one grid. Batches with more visual tokens hold fewer scenes."""
    rng = rng_of(split, seed, index)
    rows, columns = sample_grid(rng, max_tokens=max_tokens)
    scenes = max(4, round(scenes * 100 / (rows * columns)))
    drawn = [sample_scene(rng, (rows, columns)) for _ in range(scenes)]
    asked = [ask(rng, scene, questions) for scene in drawn]
    patches = np.stack([to_patches(render(scene), rows, columns) for scene in drawn]) if pixels else None
    return Batch(
        rows,
        columns,
        None if patches is None else torch.from_numpy(patches),
        *_sequences(tokenizer, rows, columns, asked),
        cells=_cells(drawn),
    )


def to_patches(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """Resized to whole cells and cut into patches: uint8 `[4 * rows * columns, 588]`, merge windows together."""
    if image.size != (columns * CELL, rows * CELL):
        image = image.resize((columns * CELL, rows * CELL), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    return pixels.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns * MERGE**2, 3 * PATCH * PATCH)


def _sequences(tokenizer: Tokenizer, rows: int, columns: int, asked: list[list[Question]]) -> tuple[torch.Tensor, ...]:
    encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
    prefix, suffix = encode("<|im_start|>user\n<|vision_start|>"), encode("<|vision_end|>")
    visual = [tokenizer.token_to_id("<|image_pad|>")] * (rows * columns)
    shared = prefix + visual + suffix
    after_image = len(prefix) + max(rows, columns)
    grid = np.indices((1, rows, columns)).reshape(3, -1) + len(prefix)
    shared_positions = np.concatenate(
        [np.tile(np.arange(len(prefix)), (3, 1)), grid, np.full((3, len(suffix)), after_image)], axis=1
    )
    all_rows = []
    for questions in asked:
        ids, labels, segments, positions = list(shared), [IGNORE] * len(shared), [0] * len(shared), [shared_positions]
        for number, question in enumerate(questions, start=1):
            asks = encode(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
            answer = encode(f"{question.answer}<|im_end|>")
            ids += asks + answer[:-1]
            labels += [IGNORE] * (len(asks) - 1) + answer
            length = len(asks) + len(answer) - 1
            segments += [number] * length
            start = after_image + len(suffix)
            positions.append(np.tile(np.arange(start, start + length), (3, 1)))
        all_rows.append((ids, labels, segments, np.concatenate(positions, axis=1)))
    length, most = max(len(row[0]) for row in all_rows), max(len(questions) for questions in asked)
    pad = lambda values, fill: list(values) + [fill] * (length - len(values))  # noqa: E731
    types = [[QUESTION_TYPES.index(q.type) for q in qs] + [-1] * (most - len(qs)) for qs in asked]
    return (
        torch.tensor([pad(row[0], 0) for row in all_rows]),
        torch.tensor([pad(row[1], IGNORE) for row in all_rows]),
        torch.tensor([pad(row[2], -1) for row in all_rows]),
        torch.from_numpy(np.stack([np.pad(row[3], ((0, 0), (0, length - row[3].shape[1]))) for row in all_rows], axis=1)),
        torch.tensor(types),
    )


def _cells(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """What each cell shows; a cell belongs to the object that covers most of it, if that is a fifth of it at least."""
    count, tokens = len(scenes), scenes[0].num_visual_tokens
    labels = {name: np.full((count, tokens), -1, np.int64) for name in ("shape", "colour", "text", "centre")}
    where = np.zeros((count, tokens, 2), np.float32)
    for b, scene in enumerate(scenes):
        top, left = np.arange(scene.rows)[:, None], np.arange(scene.columns)[None]
        best = np.full((scene.rows, scene.columns), _COVERED_SHARE)
        owner = np.full((scene.rows, scene.columns), -1)
        for number, item in enumerate(scene.objects):
            half = item.size / 2
            high = np.clip(np.minimum(item.y + half, top + 1) - np.maximum(item.y - half, top), 0, None)
            wide = np.clip(np.minimum(item.x + half, left + 1) - np.maximum(item.x - half, left), 0, None)
            owner = np.where(high * wide > best, number, owner)
            best = np.maximum(best, high * wide)
        for number, item in enumerate(scene.objects):
            mine = (owner == number).reshape(-1)
            labels["shape"][b, mine] = SHAPES.index(item.shape)
            labels["colour"][b, mine] = list(COLOURS).index(item.colour)
            labels["text"][b, mine] = TEXTS.index(item.text)
            labels["centre"][b, mine] = 0
            labels["centre"][b, int(item.y) * scene.columns + int(item.x)] = 1
            where[b, mine] = item.x / scene.columns * 2 - 1, item.y / scene.rows * 2 - 1
    return {**{name: torch.from_numpy(values) for name, values in labels.items()}, "where": torch.from_numpy(where)}

"""Training batches of any family: what the runtime's own processor and chat template make of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from foveate.engines import PromptEntry
from foveate.runtime.processors import Processor
from foveate.runtime.prompt import PromptEncoder
from foveate.runtime.types import Layout, Visual
from models.scenes.cells import View, label_cells
from models.scenes.tasks import TYPES, Kind, Size, Task, World, draw_task, sample_shape
from models.scenes.world import Question

IGNORE = -100
VISUAL_TOKENS = 3600
"""Of a batch, about, where a stage does not say otherwise."""


@dataclass
class Batch:
    """Tasks of one kind and shape, each one sequence with several questions.

    A sequence is `prompt up to the question, question 1, question 2, ...`; `segments` is 0 for what every question sees and k
    for the tokens of question k, so each question is answered as if it stood alone.

    Attributes:
        kind: of the tasks.
        feeds: what the vision graph takes of one task; `pixel_values [batch, crops, patches, patch_values]` of all, or absent.
        cells: what each feature shows, see `label_cells`; empty where nobody reads it.
        input_ids: int64 `[batch, S]`.
        visual: bool `[batch, S]`, which of them are visual tokens.
        labels: int64 `[batch, S]`, the token to predict at each place or `IGNORE`.
        segments: int64 `[batch, S]`.
        positions: int64 `[axes, batch, S]`.
        types: int64 `[batch, Q]`, the type of each question or -1.
        needs: bool `[batch, Q, features]`, the cells of the objects or texts that the answer needs; None for more than one
            picture.
    """

    kind: Kind
    feeds: dict[str, torch.Tensor]
    cells: dict[str, torch.Tensor]
    input_ids: torch.Tensor
    visual: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor
    needs: torch.Tensor | None = None


class Batches:
    """Makes the batches of one checkpoint; holds no weights, so that a worker process may have it.

    Args:
        learner: anything with `world`, `tokenizer`, `processor`, `prompt` and `views`.
    """

    def __init__(self, learner: Any) -> None:
        self.world: World = learner.world
        self.tokenizer: Tokenizer = learner.tokenizer
        self.processor: Processor = learner.processor
        self.prompt: PromptEntry = learner.prompt
        self.views = learner.views
        self.encoder = PromptEncoder(learner.prompt, learner.tokenizer)
        self.encode = lru_cache(4096)(lambda text: tuple(learner.tokenizer.encode(text, add_special_tokens=False).ids))

    def make(
        self, rng: np.random.Generator, kind: Kind, questions: int, pixels: bool, visual_tokens: int = VISUAL_TOKENS
    ) -> Batch:
        """A batch of one kind; its shape is drawn first, and the more of the `visual_tokens` it has the fewer tasks."""
        size, number = sample_shape(rng, self.world, kind)
        first = draw_task(rng, self.world, kind, size, number, questions)
        visuals = self.visuals(first)
        tokens = sum(visual.num_tokens for visual in visuals)
        most = max(4, min(40, round(visual_tokens / tokens)))
        tasks = [first, *(draw_task(rng, self.world, kind, size, number, questions) for _ in range(most - 1))]
        feeds = join_feeds([visuals, *(self.visuals(task) if pixels else visuals for task in tasks[1:])])
        if not pixels:
            del feeds["pixel_values"]
        cells = self._cells(tasks, size)
        needs = _needs(tasks, cells["item"]) if number == 1 else None
        return Batch(kind, feeds, cells, *self.sequences(tasks, visuals), needs)

    def visuals(self, task: Task) -> list[Visual]:
        """The vision graph's inputs of a task."""
        pictures = task.pictures()
        if task.kind == "video":
            return [self.processor.video(pictures, list(range(len(pictures))))]
        return [self.processor.image(picture, alone=len(pictures) == 1) for picture in pictures]

    def _cells(self, tasks: Sequence[Task], size: Size) -> dict[str, torch.Tensor]:
        views: list[list[View]] = self.views(size, tasks[0].kind, len(tasks[0].scenes))
        crops = [[(scene, view) for scene, own in zip(task.scenes, views, strict=True) for view in own] for task in tasks]
        return label_cells(crops)

    def frame(self, kind: Kind, visuals: Sequence[Visual]) -> tuple[Layout, tuple[int, ...]]:
        """Everything up to the question, laid out, and the tokens behind it up to the answer."""
        parts = [{"type": visual.kind} for visual in visuals]
        encoded = self.encoder.encode([{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}])
        own = np.flatnonzero(encoded.user_text)
        return self.processor.layout(encoded.input_ids[: own[0]], visuals), tuple(encoded.input_ids[own[-1] + 1 :].tolist())

    def sequences(self, tasks: Sequence[Task], visuals: Sequence[Visual]) -> tuple[torch.Tensor, ...]:
        """`input_ids`, `visual`, `labels`, `segments`, `positions` and `types` of tasks of the shape of `visuals`."""
        layout, behind = self.frame(tasks[0].kind, visuals)
        rows = [self._sequence(layout, behind, task.questions) for task in tasks]
        length, most = max(len(row[0]) for row in rows), max(len(task.questions) for task in tasks)
        pad = lambda values, fill: np.pad(values, (0, length - len(values)), constant_values=fill)  # noqa: E731
        ids, labels, segments, offsets = (
            torch.from_numpy(np.stack([pad(row[part], fill) for row in rows])) for part, fill in enumerate((0, IGNORE, -1, 0))
        )
        shared = torch.from_numpy(layout.position_ids)  # [axes, shared tokens]
        positions = offsets[None].repeat(len(shared), 1, 1) + layout.next_position
        positions[:, :, : shared.shape[1]] = shared[:, None]
        visual = torch.zeros_like(ids, dtype=torch.bool)
        visual[:, layout.visual_indices] = True
        types = [[TYPES.index(q.type) for q in task.questions] + [-1] * (most - len(task.questions)) for task in tasks]
        return ids, visual, labels, segments, positions, torch.tensor(types)

    def _sequence(self, layout: Layout, behind: tuple[int, ...], questions: Sequence[Question]) -> tuple[np.ndarray, ...]:
        """Token ids, labels, segments, and each token's distance from `next_position`."""
        shared = len(layout.input_ids)
        ids, labels, segments, offsets = list(layout.input_ids), [IGNORE] * shared, [0] * shared, [0] * shared
        for number, question in zip(count(1), questions, strict=False):
            asks = (*self.encode(question.text), *behind)
            answer = (*self.encode(question.answer), self.prompt.eos_token_ids[0])
            ids += asks + answer[:-1]
            labels += (*[IGNORE] * (len(asks) - 1), *answer)
            length = len(asks) + len(answer) - 1
            segments += [number] * length
            offsets += range(length)
        return tuple(np.array(values, np.int64) for values in (ids, labels, segments, offsets))


def _needs(tasks: Sequence[Task], item: torch.Tensor) -> torch.Tensor:
    """bool `[batch, Q, features]` of the number of the object on each cell, `item [batch, features]`."""
    most = max(len(task.questions) for task in tasks)
    needs = torch.zeros(len(tasks), most, item.shape[1], dtype=torch.bool)
    for row, task in enumerate(tasks):
        for number, question in enumerate(task.questions):
            needs[row, number] = torch.isin(item[row], torch.tensor(question.needs, dtype=item.dtype))
    return needs


def join_feeds(tasks: Sequence[Sequence[Visual]]) -> dict[str, torch.Tensor]:
    """Pixels of all tasks; of the other inputs, which only depend on the shape, those of the first."""
    pixels = np.stack([np.concatenate([visual.feeds["pixel_values"] for visual in visuals]) for visuals in tasks])
    first = tasks[0]
    feeds = {name: torch.from_numpy(value) for name, value in first[0].feeds.items()}
    taps = _join_taps(first) if "gather_weights" in feeds else {}
    return {**feeds, **taps, "pixel_values": torch.from_numpy(pixels)}


def _join_taps(visuals: Sequence[Visual]) -> dict[str, torch.Tensor]:
    """Indices count the features of one image and then its newline; of several images the newline is behind them all."""
    patches = [visual.feeds["pixel_values"].shape[0] * visual.feeds["pixel_values"].shape[1] for visual in visuals]
    before, total = np.cumsum([0, *patches[:-1]]), sum(patches)
    indices = [
        np.where(visual.feeds["gather_indices"] == own, total, visual.feeds["gather_indices"] + start)
        for visual, own, start in zip(visuals, patches, before, strict=True)
    ]
    return {
        "gather_indices": torch.from_numpy(np.concatenate(indices)),
        "gather_weights": torch.from_numpy(np.concatenate([visual.feeds["gather_weights"] for visual in visuals])),
    }

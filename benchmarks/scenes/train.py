"""Trains the reference checkpoint: `python -m benchmarks.scenes.train --work DIR --output models/qwen2-vl-tiny`.

Three stages (see `symbolic.py`): `text` on symbolic vectors, `vision` toward those vectors, `joint` on questions
from pixels. Every stage writes its state to DIR now and then and continues from it; the batch of a step depends
on the seed and the step alone, so an interrupted run ends where an uninterrupted one does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.scenes.checkpoint import build_config, build_model, build_tokenizer, save_checkpoint
from benchmarks.scenes.dataset import Batch, make_batch
from benchmarks.scenes.fast import answer_logits, vision_features
from benchmarks.scenes.symbolic import SymbolicVision
from benchmarks.scenes.world import QUESTION_TYPES

SAVE_EVERY, REPORT_EVERY = 100, 20


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps, scenes a batch (at 100 visual tokens) and learning rate of one stage; `max_tokens` bounds its grids."""

    name: str
    steps: int
    scenes: int
    learning_rate: float
    max_tokens: int = 256
    questions: int = 10


STAGES = {
    "text": Stage("text", 1000, 32, 2e-3, max_tokens=144),
    "vision": Stage("vision", 1500, 32, 2e-3, max_tokens=144),
    "joint": Stage("joint", 3000, 32, 1.5e-3),
}


class Steps(Dataset):
    """The batches of a stage, one an index."""

    def __init__(self, stage: Stage, seed: int, first: int) -> None:
        self.stage, self.seed, self.first = stage, seed, first
        self.tokenizer = build_tokenizer()

    def __len__(self) -> int:
        return self.stage.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        stage = self.stage
        number = list(STAGES).index(stage.name) * 10**6 + self.first + index
        pixels = stage.name != "text"
        return make_batch(self.tokenizer, "train", self.seed, number, stage.scenes, stage.questions, pixels, stage.max_tokens)


def question_hits(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """bool `[batch, Q]`: every token of the answer and its end is the most likely one, as greedy decoding has it."""
    labels = batch.labels[batch.labels >= 0]
    right = torch.ones(batch.types.shape[0], batch.types.shape[1] + 1, dtype=torch.bool)
    row, place = torch.nonzero(batch.labels >= 0, as_tuple=True)
    # Answer tokens are predicted inside their own question's segment.
    wrong = logits.argmax(-1) != labels
    right[row[wrong], batch.segments[row, place][wrong]] = False
    return right[:, 1:]


class Trainer:
    """The model, the symbolic vectors and what one stage does with a batch."""

    def __init__(self, seed: int) -> None:
        self.tokenizer = build_tokenizer()
        self.model = build_model(build_config(self.tokenizer), seed)
        self.symbolic = SymbolicVision(self.tokenizer, self.model.config.text_config.hidden_size)
        self.losses: dict[str, Callable[[Batch], tuple[torch.Tensor, dict[str, float]]]] = {
            "text": self.text_loss,
            "vision": self.vision_loss,
            "joint": self.joint_loss,
        }

    def text_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Questions answered from noisy symbolic vectors."""
        symbols = self.symbolic(self.model.model.language_model.embed_tokens.weight, batch.cells)
        return self._answer_loss(batch, symbols + 0.06 * torch.randn_like(symbols))

    def vision_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """The tower's tokens match the symbolic ones and can be read."""
        features = vision_features(self.model, batch.patches, batch.rows, batch.columns)
        with torch.no_grad():
            wanted = self.symbolic(self.model.model.language_model.embed_tokens.weight, batch.cells)
        on_object = batch.cells["shape"] >= 0
        gaps = (features - wanted).square().sum(-1)
        match = gaps[on_object].mean() + 0.1 * gaps[~on_object].mean()
        losses = self.symbolic.reading_loss(features, batch.cells)
        total = match + sum(losses.values())
        return total, {"match": float(match), **{name: float(value) for name, value in losses.items()}}

    def joint_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Questions answered from pixels; what the tokens show still counts a little."""
        features = vision_features(self.model, batch.patches, batch.rows, batch.columns)
        loss, facts = self._answer_loss(batch, features)
        losses = self.symbolic.reading_loss(features, batch.cells)
        return loss + 0.1 * sum(losses.values()), {**facts, "text_read": float(losses["text"])}

    def _answer_loss(self, batch: Batch, visual_embeds: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        logits = answer_logits(self.model, batch, visual_embeds)
        loss = F.cross_entropy(logits, batch.labels[batch.labels >= 0])
        hits = question_hits(batch, logits)
        facts = {"loss": float(loss)}
        for number, name in enumerate(QUESTION_TYPES):
            chosen = hits[batch.types == number]
            if len(chosen):
                facts[name] = float(chosen.float().mean())
        facts["accuracy"] = float(hits[batch.types >= 0].float().mean())
        return loss, facts


def _learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over 50 steps, then half a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / 50)
    return stage.learning_rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / stage.steps)) / 2)


def run_stage(trainer: Trainer, stage: Stage, work: Path, seed: int) -> None:
    """Runs or resumes one stage; its state lies in `work/<stage>.pt`, its log in `work/<stage>.jsonl`."""
    state_file = work / f"{stage.name}.pt"
    parameters = [*trainer.model.parameters(), *trainer.symbolic.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    first, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        trainer.model.load_state_dict(state["model"])
        trainer.symbolic.load_state_dict(state["symbolic"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
    torch.manual_seed(seed + first)
    loader = DataLoader(Steps(stage, seed, first), batch_size=None, num_workers=1, prefetch_factor=4)
    started, sums, count = time.monotonic(), dict[str, float](), dict[str, int]()
    for step, batch in enumerate(loader, start=first):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(stage, step)
        loss, facts = trainer.losses[stage.name](batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in facts.items():
            sums[name], count[name] = sums.get(name, 0.0) + value, count.get(name, 0) + 1
        done, seconds = step + 1, spent + time.monotonic() - started
        if done % REPORT_EVERY == 0 or done == stage.steps:
            means = {name: round(sums[name] / count[name], 4) for name in sums}
            with (work / f"{stage.name}.jsonl").open("a") as log:
                log.write(json.dumps({"step": done, "seconds": round(seconds), **means}) + "\n")
            sums, count = {}, {}
        if done % SAVE_EVERY == 0 or done == stage.steps:
            _save(state_file, trainer, optimizer, done, seconds)


def _save(path: Path, trainer: Trainer, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    state = {
        "model": trainer.model.state_dict(),
        "symbolic": trainer.symbolic.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for states and logs.")
@click.option("--output", type=click.Path(path_type=Path), help="Where the finished checkpoint goes.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=0, help="Threads of torch; 0 leaves its default.")
@click.option("--steps", "overrides", multiple=True, help="STAGE=STEPS, in place of the stage's own number.")
def main(work: Path, output: Path | None, seed: int, threads: int, overrides: tuple[str, ...]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    steps = {name: int(value) for name, value in (override.split("=") for override in overrides)}
    trainer = Trainer(seed)
    for name, stage in STAGES.items():
        run_stage(trainer, dataclasses.replace(stage, steps=steps.get(name, stage.steps)), work, seed)
    if output:
        save_checkpoint(trainer.model, trainer.tokenizer, output)


if __name__ == "__main__":
    main()

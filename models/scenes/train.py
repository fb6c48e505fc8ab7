"""Trains a reference checkpoint: `python -m models.scenes.train NAME --work DIR --output models/NAME`.

A new checkpoint goes through three stages (see `symbolic.py`): `text` learns to answer from symbolic vectors and `vision` to
see objects (the two know nothing of each other and may run side by side with `--only`), then `joint` puts them together and
answers questions from pixels. `text` and `vision` start from `--start`, a trained Qwen2-VL, as far as their layers are the
same. The Qwen2-VL itself learns several images and video in `clips`, mostly from clips, and `finish`, mostly from images, which
it would forget otherwise. Documents are learned likewise, and larger images and small ones: `lookup` teaches the text model
pages as symbols, `read` the tower what is printed on them and which row and column that is in, `dense` puts the two together;
`settle` is more of the same, of whole pictures or of parts of them (see `parts.py`). `thin` teaches the others to do with fewer
visual tokens, and `sparse` LLaVA-OneVision with very few. Every stage writes its state to DIR now and then and continues from
it; the batch of a step depends on the seed and the step alone, so an interrupted run sees what an uninterrupted one does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.scenes.batches import VISUAL_TOKENS, Batch, Batches
from models.scenes.learners import LEARNERS, new_learner
from models.scenes.parts import draw_part, keep_visual_tokens
from models.scenes.symbolic import SymbolicVision
from models.scenes.tasks import KINDS, TYPES

SAVE_EVERY, REPORT_EVERY = 50, 10
QUESTIONS = 8
FIT_BATCHES = 40
"""What `combine` looks at."""

LEARNING_RATES = {
    "text": 1.5e-3,
    "vision": 2e-3,
    "joint": 1e-3,
    "clips": 1.2e-3,
    "finish": 6e-4,
    "thin": 7e-4,
    "sparse": 7e-4,
    "dense": 1.2e-3,
    "settle": 9e-4,
    "lookup": 2e-3,
    "read": 2e-3,
}
"""Of each stage."""
SHARES = {
    "clips": (0.3, 0.2, 0.5),
    "finish": (0.5, 0.25, 0.25),
    "dense": (0.22, 0.04, 0.09, 0.45, 0.2),
    "settle": (0.32, 0.07, 0.13, 0.4, 0.08),
    "lookup": (0.2, 0.0, 0.0, 0.8, 0.0),
    "read": (0.15, 0.0, 0.0, 0.25, 0.6),
}
"""Of images, several images, clips, pages and sheets to read in stages that differ from the world's."""
SMALLER = {"dense": 2000, "settle": 2000, "read": 2000}
"""Visual tokens of a batch in stages that rather take more steps."""
CONTINUES = frozenset({"finish", "settle", "thin", "sparse"})
"""Stages that start from the weights of the one before."""
COMBINES = {"joint": ("text", "vision"), "dense": ("lookup", "read")}
"""Stages that start from the text model of one stage and the tower of another."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a training."""

    name: str
    steps: int

    @property
    def learning_rate(self) -> float:
        """At its highest."""
        return LEARNING_RATES[self.name]


class Steps(Dataset):
    """The batches of a stage, one an index."""

    def __init__(self, batches: Batches, stage: Stage, seed: int, first: int) -> None:
        self.batches, self.stage, self.seed, self.first = batches, stage, seed, first

    def __len__(self) -> int:
        return self.stage.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        numbers = [0, self.seed, 1 + list(LEARNING_RATES).index(self.stage.name), self.first + index]
        rng = np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(1,)))
        shares = SHARES.get(self.stage.name, self.batches.world.shares)
        kind = (*KINDS, "page", "sheet")[int(rng.choice(len(shares), p=shares))]
        tokens = SMALLER.get(self.stage.name, VISUAL_TOKENS)
        return self.batches.make(rng, kind, QUESTIONS, pixels=self.stage.name not in ("text", "lookup"), visual_tokens=tokens)


def question_hits(batch: Batch, logits: Tensor) -> Tensor:
    """bool `[batch, Q]`: every token of the answer and its end is the most likely one, as greedy decoding has it."""
    labels = batch.labels[batch.labels >= 0]
    right = torch.ones(batch.types.shape[0], batch.types.shape[1] + 1, dtype=torch.bool)
    row, place = torch.nonzero(batch.labels >= 0, as_tuple=True)
    # Answer tokens are predicted inside their own question's segment.
    wrong = logits.argmax(-1) != labels
    right[row[wrong], batch.segments[row, place][wrong]] = False
    return right[:, 1:]


def question_mask(segments: Tensor) -> Tensor:
    """bool `[batch, 1, S, S]`: causal, and across segments only toward segment 0."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    reachable = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return (causal & reachable)[:, None]


def drop_visual_tokens(batch: Batch, visual_embeds: Tensor, weights: Tensor, share: float) -> tuple[Batch, Tensor]:
    """A batch with a share of its visual tokens, each at its old position, and what is left of `visual_embeds [batch, N, D]`.

    Which go is random; those whose `weights [batch, N]` are higher stay rather, from 1 on whatever comes.
    """
    count, total = weights.shape
    kept = (torch.rand(count, total) + weights).topk(max(8, round(share * total))).indices.sort().values
    return keep_visual_tokens(batch, kept), visual_embeds.gather(1, kept[..., None].expand(-1, -1, visual_embeds.shape[2]))


class Trainer:
    """The checkpoint, the symbolic vectors and what one stage does with a batch."""

    def __init__(self, name: str, seed: int, work: Path, start: Path) -> None:
        self.learner = new_learner(name, seed)
        self.learner.start_from(start)
        self.learner.save(work / "untrained")
        self.learner.open(work / "untrained")
        width = self.learner.lm_head.in_features
        self.symbolic = SymbolicVision(self.learner.tokenizer, width)
        self.losses: dict[str, Callable[[Batch], tuple[Tensor, dict[str, float]]]] = {
            "text": self.text_loss,
            "vision": self.vision_loss,
            "joint": self.joint_loss,
            "clips": self.pixels_loss,
            "finish": self.pixels_loss,
            "thin": self.thin_loss,
            "sparse": self.sparse_loss,
            "dense": self.dense_loss,
            "settle": self.settle_loss,
            "lookup": self.lookup_loss,
            "read": self.read_loss,
        }

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes the weights of a saved stage."""
        self.learner.load_state_dict(state["learner"])
        self.symbolic.load_state_dict(state["symbolic"])

    @property
    def embeddings(self) -> Tensor:
        """`[vocabulary, D]`"""
        return self.learner.language_model.embed_tokens.weight

    def text_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions answered from noisy symbolic vectors."""
        symbols = self.symbolic(self.embeddings, batch.cells)
        return self._answer_loss(batch, self.learner.pack(symbols + 0.06 * torch.randn_like(symbols), batch.feeds))

    def lookup_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The same of pages too, in bf16."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.text_loss(batch)

    def read_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """What each feature shows of scenes, pages and sheets can be read from it."""
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.symbolic.reading_loss(self.learner.see(batch.feeds), batch.cells)
        facts = {f"{batch.kind}-{name}": value.item() for name, value in losses.items()}
        chosen = losses if batch.kind == "image" else {name: losses[name] for name in ("text", "colour", "row", "column")}
        return sum(chosen.values()), facts

    def vision_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """What each feature shows can be read from it."""
        losses = self.symbolic.reading_loss(self.learner.see(batch.feeds), batch.cells)
        return sum(losses.values()), {name: value.item() for name, value in losses.items()}

    def joint_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions answered from pixels; what the features show still counts a little."""
        features = self.learner.see(batch.feeds)
        loss, facts = self._answer_loss(batch, self.learner.pack(features, batch.feeds))
        losses = self.symbolic.reading_loss(features, batch.cells)
        return loss + 0.3 * sum(losses.values()), {**facts, "text_read": losses["text"].item()}

    def pixels_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions answered from pixels."""
        return self._answer_loss(batch, self.learner.pack(self.learner.see(batch.feeds), batch.feeds))

    def thin_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions answered from pixels, half of the time with fewer visual tokens, those without an object dropped first."""
        return self._pruned_loss(batch, share=float(torch.rand(()) * 1.6 + 0.2), preference=0.8)

    def sparse_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions answered from pixels, mostly with few visual tokens, from any to nothing but objects."""
        share, preference = torch.rand(2).tolist()
        return self._pruned_loss(batch, 0.1 + 1.2 * share, 2 * preference)

    def dense_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Questions answered from pixels; what is printed, and in which row and column, can be read from the features."""
        # Twice as fast as in fp32 where the processor multiplies bf16; the weights stay fp32.
        with torch.autocast("cpu", torch.bfloat16):
            features = self.learner.see(batch.feeds)
            losses = self.symbolic.reading_loss(features, batch.cells)
            if batch.kind == "sheet":
                facts = {"sheet_read": losses["text"].item(), "sheet_row_read": losses["row"].item()}
                return losses["text"] + losses["row"] + losses["colour"], facts
            loss, facts = self._answer_loss(batch, self.learner.pack(features, batch.feeds))
        read = {name: losses[name] for name in ("text", "row", "column")}
        return loss + sum(read.values()), {**facts, **{f"{name}_read": value.item() for name, value in read.items()}}

    def settle_loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The same, with parts of many pictures where the checkpoint learns from them."""
        parts = self.learner.drops_patches and batch.kind != "sheet"
        return self.dense_loss(draw_part(batch) if parts else batch)

    def _pruned_loss(self, batch: Batch, share: float, preference: float) -> tuple[Tensor, dict[str, float]]:
        """With a share of the visual tokens, at 1 and above all of them; those that show an object weigh `preference`."""
        features = self.learner.see(batch.feeds)
        visual_embeds, cells = self.learner.pack(features, batch.feeds), batch.cells
        on_object = (cells["shape"] >= 0).float()[..., None].expand_as(features)
        matter = self.learner.pack(on_object, batch.feeds)[..., 0].detach().clamp(0, 1)
        if share < 1:
            batch, visual_embeds = drop_visual_tokens(batch, visual_embeds, preference * matter, share)
        loss, facts = self._answer_loss(batch, visual_embeds)
        if "vision" in self.learner.stages:  # what reads the features was trained
            loss = loss + 0.3 * sum(self.symbolic.reading_loss(features, cells).values())
        return loss, facts

    def fit_projection(self, batches: Iterable[Batch]) -> None:
        """Sets the last matrix of the projector to the least-squares map onto the symbolic vectors; the readers follow it."""
        with torch.no_grad():
            seen = list(self._unprojected(batches))
            self._solve_projection(seen)
        readers = [p for name, p in self.symbolic.named_parameters() if "reader" in name]
        optimizer = torch.optim.AdamW(readers, lr=1e-2)
        for inputs, cells in 5 * seen:
            sum(self.symbolic.reading_loss(self.learner.projection(inputs).detach(), cells).values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _unprojected(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """What goes into the last matrix of the projector, `[batch, N, D]`, and what it shows."""
        inputs: list[Tensor] = []
        hook = self.learner.projection.register_forward_pre_hook(lambda _, taken: inputs.append(taken[0]))
        for batch in batches:
            self.learner.see(batch.feeds)
            yield inputs.pop().reshape(*batch.cells["shape"].shape, -1), batch.cells
        hook.remove()

    def _solve_projection(self, seen: Iterable[tuple[Tensor, dict[str, Tensor]]]) -> None:
        last = self.learner.projection
        size = last.in_features + 1
        gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, last.out_features, dtype=torch.float64)
        for features, cells in seen:
            inputs = F.pad(features.flatten(0, 1), (0, 1), value=1.0).double()
            wanted = self.symbolic(self.embeddings, cells).flatten(0, 1).double()
            # Background is most of an image, so its cells weigh less.
            weighted = inputs * torch.where(cells["centre"] >= 0, 1.0, 0.1).flatten()[:, None]
            gram += weighted.T @ inputs
            moment += weighted.T @ wanted
        ridge = 1e-4 * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        solution = torch.linalg.solve(gram + ridge, moment).float()
        last.weight.copy_(solution[:-1].T)
        last.bias.copy_(solution[-1])

    def answer_logits(self, batch: Batch, visual_embeds: Tensor) -> Tensor:
        """`[places, vocabulary]` at the places of `batch.labels` that are to be predicted; visual tokens `[batch, N, D]`."""
        embeds = self.learner.language_model.embed_tokens(batch.input_ids)
        embeds = embeds.masked_scatter(batch.visual[..., None], visual_embeds.to(embeds.dtype))
        positions = batch.positions[0] if len(batch.positions) == 1 else batch.positions
        output = self.learner.language_model(
            inputs_embeds=embeds, attention_mask=question_mask(batch.segments), position_ids=positions, use_cache=False
        )
        return self.learner.lm_head(output.last_hidden_state[batch.labels >= 0])

    def _answer_loss(self, batch: Batch, visual_embeds: Tensor) -> tuple[Tensor, dict[str, float]]:
        logits = self.answer_logits(batch, visual_embeds)
        loss = F.cross_entropy(logits.float(), batch.labels[batch.labels >= 0])
        hits = question_hits(batch, logits)
        facts = {f"loss-{batch.kind}": loss.item()}
        for number in batch.types[batch.types >= 0].unique().tolist():
            facts[f"{batch.kind}-{TYPES[number]}"] = hits[batch.types == number].float().mean().item()
        return loss, {**facts, batch.kind: hits[batch.types >= 0].float().mean().item()}


def _learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over 50 steps, then half a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / 50)
    return stage.learning_rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / stage.steps)) / 2)


def build_optimizers(trainer: Trainer, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, patch kernel, norms and biases.

    After 200 steps of stage `text` of Qwen2-VL Muon read 36 % of words and 67 % of digits off symbolic vectors, AdamW
    alone 13 % and 17 %.
    """
    parameters = {id(p): p for p in (*trainer.learner.parameters(), *trainer.symbolic.parameters())}.values()
    tables = {id(module.weight) for module in trainer.learner.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [p for p in parameters if p.dim() == 2 and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=stage.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


@dataclasses.dataclass
class Progress:
    """How far a stage is, in steps and in seconds over all its runs."""

    step: int = 0
    seconds: float = 0.0


def run_stage(trainer: Trainer, stage: Stage, work: Path, seed: int) -> None:
    """Runs or resumes one stage; its state lies in `work/<stage>.pt`, its log in `work/<stage>.jsonl`."""
    optimizers = build_optimizers(trainer, stage)
    progress = _resume(work / f"{stage.name}.pt", trainer, optimizers)
    torch.manual_seed(seed + progress.step)
    steps = Steps(Batches(trainer.learner), stage, seed, progress.step)
    loader = DataLoader(steps, batch_size=None, num_workers=1, prefetch_factor=4, multiprocessing_context="fork")
    log, started = Log(work / f"{stage.name}.jsonl"), time.monotonic() - progress.seconds
    for batch in loader:
        log.add(take_step(trainer, stage, optimizers, batch, progress.step))
        progress = Progress(progress.step + 1, time.monotonic() - started)
        if progress.step % REPORT_EVERY == 0 or progress.step == stage.steps:
            log.write(progress)
        if progress.step % SAVE_EVERY == 0 or progress.step == stage.steps:
            _save(work / f"{stage.name}.pt", trainer, optimizers, progress)


def take_step(
    trainer: Trainer, stage: Stage, optimizers: list[torch.optim.Optimizer], batch: Batch, step: int
) -> dict[str, float]:
    """One update of the weights; returns what the loss has to say."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = _learning_rate(stage, step)
    loss, facts = trainer.losses[stage.name](batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return facts


class Log:
    """Means of what the steps said, as one JSON line now and then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, list[float]] = {}

    def add(self, facts: dict[str, float]) -> None:
        for name, value in facts.items():
            self.values.setdefault(name, []).append(value)

    def write(self, progress: Progress) -> None:
        means = {name: round(sum(values) / len(values), 4) for name, values in sorted(self.values.items())}
        with self.path.open("a") as log:
            log.write(json.dumps({"step": progress.step, "seconds": round(progress.seconds), **means}) + "\n")
        self.values = {}


def _resume(path: Path, trainer: Trainer, optimizers: list[torch.optim.Optimizer]) -> Progress:
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    trainer.load(state)
    for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(content)
    return Progress(state["step"], state["seconds"])


def _save(path: Path, trainer: Trainer, optimizers: list[torch.optim.Optimizer], progress: Progress) -> None:
    state: dict[str, Any] = {
        "learner": trainer.learner.state_dict(),
        "symbolic": trainer.symbolic.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        **dataclasses.asdict(progress),
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def combine(trainer: Trainer, text_stage: str, vision_stage: str, work: Path, seed: int) -> None:
    """The text model and symbolic vectors of one stage with the tower and readers of another.

    The tower's features first go onto the symbolic vectors by least squares: gradients from so far off would undo the tower.
    """
    text, vision = (torch.load(work / f"{name}.pt", weights_only=True) for name in (text_stage, vision_stage))
    of_text = {id(p) for p in (*trainer.learner.language_model.parameters(), *trainer.learner.lm_head.parameters())}
    names = {name for name, p in trainer.learner.named_parameters(remove_duplicate=False) if id(p) in of_text}
    learner = {name: (text if name in names else vision)["learner"][name] for name in vision["learner"]}
    # The newline is a vector of the language model, but lies with the tower: only the text model's stage has used it.
    learner |= {name: value for name, value in text["learner"].items() if name.endswith("image_newline")}
    readers = {name: value for name, value in vision["symbolic"].items() if "reader" in name}
    trainer.load({"learner": learner, "symbolic": text["symbolic"] | readers})
    steps = Steps(Batches(trainer.learner), Stage(vision_stage, FIT_BATCHES), seed + 1, 0)
    trainer.fit_projection(steps[index] for index in range(len(steps)))


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(LEARNERS)))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for states and logs.")
@click.option("--output", type=click.Path(path_type=Path), help="Where the finished checkpoint goes.")
@click.option("--start", type=click.Path(path_type=Path), default=Path("models/qwen2-vl-tiny"), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=0, help="Threads of torch; 0 leaves its default.")
@click.option("--only", type=click.Choice(list(LEARNING_RATES)), multiple=True, help="Run these stages only.")
def main(name: str, work: Path, output: Path | None, start: Path, seed: int, threads: int, only: tuple[str, ...]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    trainer = Trainer(name, seed, work, start)
    for stage in only or trainer.learner.stages:
        trainer = Trainer(name, seed, work, start)
        if stage in COMBINES and not (work / f"{stage}.pt").exists():
            combine(trainer, *COMBINES[stage], work, seed)
        if stage in CONTINUES:
            names = list(trainer.learner.stages)
            trainer.load(torch.load(work / f"{names[names.index(stage) - 1]}.pt", weights_only=True))
        run_stage(trainer, Stage(stage, trainer.learner.stages[stage]), work, seed)
    if output:
        trainer.learner.save(output)


if __name__ == "__main__":
    main()

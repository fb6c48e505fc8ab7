"""`train`: a scorer from labels, without the model that they are of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from foveate.engines import ScorerError, find_neighbours
from foveate.engines.errors import reason_of
from foveate.exporter.scorer.features import count_channels
from foveate.exporter.scorer.file import SCHEMA_VERSION, ScorerFacts, write_scorer
from foveate.exporter.scorer.network import NetworkConfig, Scorer, row_neighbours
from foveate.exporter.scorer.store import Label, LabelsHeader, read_header, read_labels


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        network: the network.
        epochs: most passes over the samples.
        patience: stop after this many epochs without a better validation loss.
        batch_size: samples of a step.
        learning_rate: highest of the schedule (a short warm-up, then a cosine to zero).
        weight_decay: of AdamW.
        masked_share: the lowest share of each label that counts as zero (0.5 in arXiv 2506.01097, which leaves open
            which tokens stay beyond the best half).
        exponent: of the relevance in the target, see `target` (1 in arXiv 2506.01097).
        validation_share: share of the images that are kept for validation.
        limit: train on this many samples, drawn with `seed`; None for all.
        seed: of weights, split, order and draw.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    epochs: int = 40
    patience: int = 8
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    masked_share: float = 0.0
    exponent: float = 0.5
    validation_share: float = 0.1
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "learning_rate", "limit", "exponent"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ScorerError(f"{name} is {value}, expected a number above 0. Raise it.")
        for name in ("weight_decay", "seed"):
            if (value := getattr(self, name)) < 0:
                raise ScorerError(f"{name} is {value}, expected at least 0. Raise it.")
        if not 0 <= self.masked_share < 1:
            raise ScorerError(f"masked_share is {self.masked_share}, expected 0 or more and less than 1. Choose 0.")
        if not 0 < self.validation_share < 1:
            raise ScorerError(f"validation_share is {self.validation_share}, expected a share between 0 and 1. Choose 0.1.")

    @classmethod
    def read(cls, file: Path, **changes: Any) -> TrainOptions:
        """Options from a JSON file; `changes` take precedence.

        Raises:
            ScorerError: the file is missing, or has an unknown key or an unusable value.
        """
        try:
            options = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            unknown = set(options) - set(cls.__dataclass_fields__)
            if unknown:
                raise msgspec.ValidationError(f"unknown keys {', '.join(sorted(unknown))}")
            return msgspec.convert({**options, **changes}, cls)
        except OSError as error:
            raise ScorerError(f"{file} can't be read: {error.strerror or error}. Name a JSON file with options.") from error
        except msgspec.DecodeError as error:
            raise ScorerError(
                f"{file}: {reason_of(error)}. Expected a JSON object with some of {', '.join(cls.__dataclass_fields__)}."
            ) from error


@dataclass(frozen=True)
class Epoch:
    """Losses of one pass: KL divergence in nats, mean over samples."""

    training: float
    validation: float


@dataclass(frozen=True)
class TrainResult:
    """The scorer that did best on validation, and how it came about.

    Attributes:
        scorer: ready to be written or exported.
        facts: what its file says about it.
        history: every epoch.
        best_epoch: the one whose weights were kept, counted from 0.
        early_stopped: whether validation stopped improving before the last epoch.
    """

    scorer: Scorer
    facts: ScorerFacts
    history: tuple[Epoch, ...]
    best_epoch: int
    early_stopped: bool


class Prepared(NamedTuple):
    """A label as the network wants it.

    Attributes:
        channels: `[tokens, channels]` float32 on the scale of the training data.
        target: `[tokens]` float32 of sum 1.
        neighbours: `[tokens, places]` int64, `tokens` for nobody.
    """

    channels: Tensor
    target: Tensor
    neighbours: Tensor


Progress = Callable[[int, Epoch], None]
"""Told each epoch when it is done."""


def train(
    labels: Path, output: Path | None, options: TrainOptions | None = None, progress: Progress | None = None
) -> TrainResult:
    """Trains a scorer on a folder of labels and writes it.

    Args:
        labels: what `foveate scorer label` wrote.
        output: the file to write; None to write none.
        options: how to train.
        progress: see `Progress`.

    Raises:
        LabelError: the labels are unfinished or broken.
        ScorerError: there are too few of them, the network is too large, or the loss is no number.
    """
    options = options or TrainOptions()
    header = read_header(Path(labels))
    training, validation = split(list(read_labels(Path(labels))), options)
    torch.manual_seed(options.seed)
    scorer = Scorer(options.network, header.heads)
    rows = _rows(header, options.network)
    fit_scale(scorer, [torch.from_numpy(label.features[rows]) for label in training])
    prepared = [[prepare(label, rows, scorer, options) for label in part] for part in (training, validation)]
    history, best_epoch = fit(scorer, prepared[0], prepared[1], options, progress or (lambda number, epoch: None))
    if not np.isfinite(history[best_epoch].validation):
        raise ScorerError(f"the validation loss became {history[best_epoch].validation}. Lower learning_rate.")
    facts = ScorerFacts(
        schema_version=SCHEMA_VERSION,
        checkpoint=header.checkpoint,
        checkpoint_sha256=header.checkpoint_sha256,
        heads=header.heads,
        network=options.network,
        training=_training_facts(header, options, prepared, history, best_epoch),
    )
    if output is not None:
        write_scorer(Path(output), scorer, facts)
    return TrainResult(scorer, facts, tuple(history), best_epoch, len(history) < options.epochs)


def split(labels: Sequence[Label], options: TrainOptions) -> tuple[list[Label], list[Label]]:
    """Training and validation samples, of those that were answered correctly; no image is in both.

    Raises:
        ScorerError: there are fewer than two images.
    """
    usable = [label for label in labels if label.correct]
    random = np.random.default_rng(options.seed)
    images = random.permutation(sorted({label.image for label in usable}))
    if len(images) < 2:
        raise ScorerError(
            f"the labels are of {len(images)} images that were answered correctly, expected at least 2. Label more samples."
        )
    count = round(options.validation_share * len(images))
    held = set(images[: min(max(count, 1), len(images) - 1)].tolist())
    training = [label for label in usable if label.image not in held]
    if options.limit is not None and options.limit < len(training):
        training = [training[index] for index in sorted(random.choice(len(training), options.limit, replace=False))]
    return training, [label for label in usable if label.image in held]


def _rows(header: LabelsHeader, network: NetworkConfig) -> np.ndarray:
    """Which of the stored channels the network sees, in its order."""
    ends = np.cumsum(list(header.channels.values()))
    places = {group: np.arange(end - count, end) for (group, count), end in zip(header.channels.items(), ends, strict=True)}
    missing = set(network.features) - set(places)
    if missing or count_channels(network.features, header.heads) != {g: header.channels[g] for g in network.features}:
        raise ScorerError(f"the labels have no features {', '.join(sorted(missing))}. Label again, or choose other features.")
    return np.concatenate([places[group] for group in network.features])


def fit_scale(scorer: Scorer, channels: Sequence[Tensor]) -> None:
    """Sets the scale of the channels from those of the training data, each `[channels, tokens]`."""
    every = torch.cat(list(channels), dim=1)
    scorer.shift.copy_(every.mean(dim=1))
    scorer.scale.copy_(1 / (every.std(dim=1) + 1e-6))


def target(relevance: Tensor, masked_share: float, exponent: float) -> Tensor:
    """R* of arXiv 2506.01097: the lowest share of the relevance set to zero, the rest of sum 1.

    Relevance that is zero everywhere gives the uniform distribution. An exponent below 1 brings the values nearer to each
    other, so that the order among tokens of little relevance is learned, too; with 1 the loss hardly sees it.
    """
    lowest = torch.argsort(relevance, stable=True)[: int(masked_share * len(relevance))]
    kept = relevance.pow(exponent).index_fill(0, lowest, 0)
    total = kept.sum()
    return kept / total if total > 0 else torch.full_like(kept, 1 / len(kept))


def prepare(label: Label, rows: np.ndarray, scorer: Scorer, options: TrainOptions) -> Prepared:
    """A label as the network wants it."""
    relevance = torch.from_numpy(label.relevance)
    around = torch.from_numpy(find_neighbours(label.grids)) if scorer.on_grid else row_neighbours(len(relevance))
    channels = scorer.normalise(torch.from_numpy(label.features[rows])).T.contiguous()
    return Prepared(channels, target(relevance, options.masked_share, options.exponent), around)


def fit(
    scorer: Scorer, training: Sequence[Prepared], validation: Sequence[Prepared], options: TrainOptions, progress: Progress
) -> tuple[list[Epoch], int]:
    """Trains in place and leaves the weights of the best epoch; gives every epoch and the number of the best."""
    steps = -(-len(training) // options.batch_size)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps * options.epochs + 1, pct_start=0.1
    )
    random, history = np.random.default_rng(options.seed), []
    best, best_epoch = copy.deepcopy(scorer.state_dict()), 0
    for number in range(options.epochs):
        scorer.train()
        losses = []
        for batch in batches(training, options.batch_size, random):
            loss = divergence(scorer, batch)
            optimizer.zero_grad()
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses += loss.tolist()
        history.append(Epoch(float(np.mean(losses)), validate(scorer, validation, options.batch_size)))
        progress(number, history[-1])
        if history[-1].validation < history[best_epoch].validation or number == 0:
            best, best_epoch = copy.deepcopy(scorer.state_dict()), number
        if number - best_epoch >= options.patience:
            break
    scorer.load_state_dict(best)
    scorer.eval()
    return history, best_epoch


@torch.no_grad()
def validate(scorer: Scorer, samples: Sequence[Prepared], batch_size: int) -> float:
    """Mean divergence over samples."""
    scorer.eval()
    return float(np.mean([loss for batch in batches(samples, batch_size, None) for loss in divergence(scorer, batch).tolist()]))


def batches(samples: Sequence[Prepared], size: int, random: np.random.Generator | None) -> Iterator[list[Prepared]]:
    """Batches of samples, in random order where there is a generator."""
    order = np.arange(len(samples)) if random is None else random.permutation(len(samples))
    for start in range(0, len(order), size):
        yield [samples[index] for index in order[start : start + size]]


def divergence(scorer: Scorer, batch: Sequence[Prepared]) -> Tensor:
    """KL(R* || softmax(logits)) of each sample, `[batch]`, in nats."""
    target = torch.cat([sample.target for sample in batch])
    sizes = torch.tensor([len(sample.target) for sample in batch])
    owner = torch.repeat_interleave(torch.arange(len(batch)), sizes)
    logits = batch_logits(scorer, batch, owner, sizes)
    peaks = logits.detach().new_full((len(batch),), -torch.inf).scatter_reduce(0, owner, logits.detach(), "amax")
    shifted = logits - peaks[owner]
    log_sums = torch.zeros(len(batch)).index_add(0, owner, shifted.exp()).log()
    terms = torch.xlogy(target, target) - target * (shifted - log_sums[owner])
    return torch.zeros(len(batch)).index_add(0, owner, terms)


def batch_logits(scorer: Scorer, batch: Sequence[Prepared], owner: Tensor, sizes: Tensor) -> Tensor:
    """The network's logits `[tokens]` of several samples, one behind the other; `owner [tokens]` is the sample of each."""
    total, neighbours, first = int(sizes.sum()), [], 0
    for sample in batch:
        nobody = sample.neighbours == len(sample.target)
        neighbours.append((sample.neighbours + first).masked_fill(nobody, total))
        first += len(sample.target)

    member = (owner[:, None] == torch.arange(len(batch))).float()

    def mean(x: Tensor) -> Tensor:
        return member @ (member.T @ x / sizes[:, None])  # products, whose gradient is fast, in place of index_add

    return scorer.network(torch.cat([sample.channels for sample in batch]), torch.cat(neighbours), mean)


def _training_facts(
    header: LabelsHeader,
    options: TrainOptions,
    prepared: Sequence[Sequence[Prepared]],
    history: Sequence[Epoch],
    best_epoch: int,
) -> dict[str, Any]:
    facts = asdict(options)
    facts.pop("network")
    return {
        **facts,
        "objective": header.objective,
        "contribution": header.contribution,
        "data_sha256": header.data_sha256,
        "training_samples": len(prepared[0]),
        "validation_samples": len(prepared[1]),
        "most_visual_tokens": max(len(sample.target) for sample in prepared[0]),
        "best_epoch": best_epoch,
        "training_loss": round(history[best_epoch].training, 6),
        "validation_loss": round(history[best_epoch].validation, 6),
    }

"""First layers and labels without a model; the labels follow a rule that a scorer can learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.engines import Grid
from foveate.exporter.scorer import FEATURES, Label, LabelsHeader
from foveate.exporter.scorer.features import FirstLayer, count_channels
from foveate.exporter.scorer.store import SCHEMA_VERSION, start, write_shard

HEADS = 2
CHANNELS = count_channels(list(FEATURES), HEADS)


def first_layer(heads: int, rows: int, tokens: int, seed: int) -> FirstLayer:
    """Random attention from 1e-5 to 1, as spread as that of a trained head, and random embeddings."""
    random = torch.Generator().manual_seed(seed)
    attention = 10 ** (-5 * torch.rand(heads, rows, tokens, generator=random))
    return FirstLayer(attention, torch.randn(tokens, 8, generator=random), torch.randn(rows, 8, generator=random))


def make_label(sample: int, image: int, grids: Sequence[Grid], correct: bool = True) -> Label:
    """What mattered is where the first channel of `mean` is high, and its neighbour to the right too."""
    random = np.random.default_rng(sample)
    tokens = sum(frames * height * width for frames, height, width in grids)
    features = random.normal(size=(sum(CHANNELS.values()), tokens)).astype(np.float32)
    places = np.cumsum([0, *(frames * height * width for frames, height, width in grids)])
    seen = features[CHANNELS["attention"]]
    mattered = [_beside(seen[start:end].reshape(grid)) for grid, start, end in zip(grids, places, places[1:], strict=False)]
    relevance = np.exp(np.concatenate(mattered)).astype(np.float32)
    return Label(sample, image, correct, tuple(grids), features, relevance)


def _beside(seen: np.ndarray) -> np.ndarray:
    right = np.pad(seen[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    return (seen + right).ravel()


def make_labels(count: int, images: int | None = None) -> list[Label]:
    """Labels of images of several sizes, two questions each unless `images` says otherwise."""
    images = images or -(-count // 2)
    return [make_label(sample, sample % images, [(1, 3 + sample % images % 3, 4)]) for sample in range(count)]


def make_header(num_samples: int, **changes: Any) -> LabelsHeader:
    """The header of a folder of labels of all samples."""
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": "tiny",
        "checkpoint_sha256": "a" * 64,
        "data_sha256": "d" * 64,
        "heads": HEADS,
        "channels": CHANNELS,
        "objective": "margin",
        "contribution": "magnitude",
        "wrong": True,
        "max_new_tokens": 16,
        "samples": tuple(range(num_samples)),
        "shard_size": 50,
    }
    return LabelsHeader(**facts | changes)


def write_labels(folder: Path, labels: Sequence[Label], **changes: Any) -> Path:
    """A finished folder of labels; `changes` are those of its header."""
    header = make_header(max(label.sample for label in labels) + 1, **changes)
    for shard in start(folder, header):
        write_shard(folder, shard, [label for label in labels if label.sample in header.shard_samples(shard)], header)
    return folder

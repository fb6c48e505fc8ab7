"""The folder of labels: `labels.json` says what was labelled and how, each shard holds the samples of one range.

A shard is written to a temporary file and renamed, so a range is either done or not: a killed run goes on with the first
range that has no shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from foveate.engines import LabelError, replace_file
from foveate.engines.errors import reason_of

SCHEMA_VERSION = 1
HEADER = "labels.json"
_REMEDY = "Label again into another folder."


class LabelsHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every shard of a folder has in common.

    Attributes:
        schema_version: of this folder.
        checkpoint: name of the checkpoint's folder.
        checkpoint_sha256: of its config and weights.
        data_sha256: of the questions.
        heads: attention heads of the model.
        channels: number of channels of each group of features, in the order in which they are stored.
        objective: what was differentiated, see `OBJECTIVES`.
        contribution: what of attention times gradient counted, see `CONTRIBUTIONS`.
        wrong: samples that the model answers wrongly are labelled too, by the answer it gave.
        max_new_tokens: longest answer.
        samples: numbers of the samples to label, in order.
        shard_size: samples of a shard.
    """

    schema_version: int
    checkpoint: str
    checkpoint_sha256: str
    data_sha256: str
    heads: int
    channels: dict[str, int]
    objective: str
    contribution: str
    wrong: bool
    max_new_tokens: int
    samples: tuple[int, ...]
    shard_size: Annotated[int, msgspec.Meta(ge=1)]

    @property
    def num_shards(self) -> int:
        return -(-len(self.samples) // self.shard_size)

    def shard_samples(self, shard: int) -> tuple[int, ...]:
        """Numbers of the samples of a shard, right and wrong ones."""
        return self.samples[shard * self.shard_size : (shard + 1) * self.shard_size]


@dataclass(frozen=True, eq=False)
class Label:
    """One labelled sample.

    Attributes:
        sample: its number in the data.
        image: number of the first sample with the same image; what shares an image must not be split.
        correct: whether the model's answer is right.
        grids: frames, rows and columns of each image or video.
        features: `[channels, visual_tokens]` float32, stored as float16.
        relevance: `[visual_tokens]` float32, non-negative.
    """

    sample: int
    image: int
    correct: bool
    grids: tuple[tuple[int, int, int], ...]
    features: np.ndarray
    relevance: np.ndarray


def write_shard(folder: Path, shard: int, labels: Sequence[Label], header: LabelsHeader) -> None:
    """Writes the labels of one range; those that were skipped are absent."""
    channels = sum(header.channels.values())
    none = np.empty((channels, 0), np.float32)
    tensors: dict[str, np.ndarray] = {
        "sample": np.array([label.sample for label in labels], np.int64),
        "image": np.array([label.image for label in labels], np.int64),
        "correct": np.array([label.correct for label in labels], np.uint8),
        "num_tokens": np.array([len(label.relevance) for label in labels], np.int64),
        "num_grids": np.array([len(label.grids) for label in labels], np.int64),
        "grids": np.array([grid for label in labels for grid in label.grids], np.int64).reshape(-1, 3),
        "features": np.concatenate([none, *(label.features for label in labels)], axis=1).astype(np.float16),
        "relevance": np.concatenate([np.empty(0, np.float32), *(label.relevance for label in labels)]),
    }
    replace_file(folder / _shard_name(shard), save(tensors))


def start(folder: Path, header: LabelsHeader) -> list[int]:
    """Begins a folder of labels, or goes on with one of the same header.

    Returns:
        The shards that are still to be written.

    Raises:
        LabelError: the folder holds something else, or can't be written.
    """
    if (folder / HEADER).is_file():
        _check_same(folder, read_header(folder), header)
    elif folder.exists() and (not folder.is_dir() or any(not _is_left_over(path) for path in folder.iterdir())):
        raise LabelError(f"{folder} exists and holds no labels. Choose another folder.")
    else:
        _begin(folder, header)
    return [shard for shard in range(header.num_shards) if not (folder / _shard_name(shard)).is_file()]


def _is_left_over(path: Path) -> bool:
    """Whether a run that was killed left this behind before it had a header."""
    return path.name.startswith(f".{HEADER}.") and path.suffix == ".tmp"


def _begin(folder: Path, header: LabelsHeader) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / HEADER, msgspec.json.format(msgspec.json.encode(header)) + b"\n")
    except OSError as error:
        raise LabelError(f"{folder} can't be written: {error.strerror or error}. Choose another folder.") from error


def _check_same(folder: Path, found: LabelsHeader, wanted: LabelsHeader) -> None:
    for field in LabelsHeader.__struct_fields__:
        if getattr(found, field) != getattr(wanted, field):
            raise LabelError(
                f"{folder} was labelled with another '{field}' ({_short(getattr(found, field))}, now "
                f"{_short(getattr(wanted, field))}). Choose another folder."
            )


def read_header(folder: Path) -> LabelsHeader:
    """The header of a folder of labels.

    Raises:
        LabelError: it is missing, broken or of another schema version.
    """
    file = folder / HEADER
    if not file.is_file():
        raise LabelError(
            f"{folder} holds no labels: it has no {HEADER}. Run 'foveate scorer label CHECKPOINT DATA -o {folder}'."
        )
    try:
        header = msgspec.json.decode(file.read_bytes(), type=LabelsHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"{file} is not a valid header: {reason_of(error)}. {_REMEDY}") from error
    if header.schema_version != SCHEMA_VERSION:
        raise LabelError(f"{file} has schema version {header.schema_version}, this foveate reads {SCHEMA_VERSION}. {_REMEDY}")
    return header


def read_labels(folder: Path) -> Iterator[Label]:
    """Every label of a folder whose labelling is finished.

    Raises:
        LabelError: a shard is missing or broken, or holds values that are not finite.
    """
    header = read_header(folder)
    for shard in range(header.num_shards):
        file = folder / _shard_name(shard)
        if not file.is_file():
            raise LabelError(
                f"{folder} is not finished: {file.name} of {header.num_shards} shards is missing. "
                "Run the same 'foveate scorer label' again, it goes on where it stopped."
            )
        yield from _read_shard(file, header)


def _read_shard(file: Path, header: LabelsHeader) -> Iterator[Label]:
    try:
        labels = list(_unpack(load_file(file)))
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise LabelError(
            f"{file} is not a shard of labels: {reason_of(error)}. Delete it and run 'foveate scorer label' again."
        ) from error
    for label in labels:
        _check_label(label, file, header)
        yield label


def _unpack(tensors: Mapping[str, np.ndarray]) -> Iterator[Label]:
    """What `write_shard` packed; any of several errors where the tensors are not of this form."""
    ends, grid_ends = np.cumsum(tensors["num_tokens"]), np.cumsum(tensors["num_grids"])
    features = np.split(tensors["features"].astype(np.float32), ends[:-1], axis=1) if len(ends) else []
    relevance = np.split(tensors["relevance"], ends[:-1]) if len(ends) else []
    grids = np.split(tensors["grids"], grid_ends[:-1]) if len(ends) else []
    facts = (tensors[name].tolist() for name in ("sample", "image", "correct"))
    for sample, image, correct, shape, values, target in zip(*facts, grids, features, relevance, strict=True):
        yield Label(sample, image, bool(correct), tuple((f, h, w) for f, h, w in shape.tolist()), values, target)


def _check_label(label: Label, file: Path, header: LabelsHeader) -> None:
    where = f"{file}, sample {label.sample}"
    cells = sum(frames * rows * columns for frames, rows, columns in label.grids)
    if label.features.shape != (sum(header.channels.values()), cells) or label.relevance.shape != (cells,):
        raise LabelError(
            f"{where}: features {list(label.features.shape)} and relevance {list(label.relevance.shape)} do not fit "
            f"{cells} visual tokens and {sum(header.channels.values())} channels. {_REMEDY}"
        )
    if not (np.isfinite(label.features).all() and np.isfinite(label.relevance).all() and (label.relevance >= 0).all()):
        raise LabelError(f"{where}: values that are not finite, or negative relevance. {_REMEDY}")


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

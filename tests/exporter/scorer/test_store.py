"""The folder of labels: what was written is read, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from foveate.engines import LabelError
from foveate.exporter.scorer import read_header, read_labels
from foveate.exporter.scorer.store import HEADER, start, write_shard
from tests.exporter.scorer.synthetic import make_header, make_label, make_labels, write_labels

SHARD = "shard-00001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve samples in three shards; 5 and 6 have no label, 7 was answered wrongly, the last shard is empty."""
    labels = [*make_labels(5), make_label(7, 3, [(1, 2, 3), (2, 3, 1)], correct=False)]
    return write_labels(tmp_path / "labels", labels, samples=tuple(range(12)), shard_size=4)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_written_is_read(folder: Path) -> None:
    labels = list(read_labels(folder))
    assert [label.sample for label in labels] == [0, 1, 2, 3, 4, 7]
    assert [label.correct for label in labels] == [True] * 5 + [False]
    assert labels[-1].grids == ((1, 2, 3), (2, 3, 1))
    for label in labels:
        expected = make_label(label.sample, label.image, label.grids)
        assert label.features.dtype == label.relevance.dtype == np.float32
        np.testing.assert_array_equal(label.features, expected.features.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(label.relevance, expected.relevance)
    assert read_header(folder) == make_header(12, shard_size=4)


def test_shards_cover_every_sample_once() -> None:
    facts = make_header(0, samples=tuple(range(0, 33, 3)), shard_size=4)
    shards = [facts.shard_samples(shard) for shard in range(facts.num_shards)]
    assert [len(shard) for shard in shards] == [4, 4, 3]
    assert sum(shards, ()) == facts.samples


def test_a_started_folder_goes_on_with_the_shards_that_are_missing(tmp_path: Path) -> None:
    folder, facts = tmp_path / "deep" / "labels", make_header(12, shard_size=4)
    assert start(folder, facts) == [0, 1, 2]
    write_shard(folder, 1, [], facts)
    (folder / f".{SHARD}.123.tmp").write_bytes(b"half")
    (folder / ".shard-00002.safetensors.123.tmp").write_bytes(b"half")
    assert start(folder, facts) == [0, 2]


def test_a_run_that_was_killed_before_it_had_a_header(tmp_path: Path) -> None:
    (tmp_path / f".{HEADER}.123.tmp").write_bytes(b"{")
    assert start(tmp_path, make_header(3)) == [0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"checkpoint_sha256": "b" * 64}, "checkpoint_sha256"),
        ({"data_sha256": "e" * 64}, "data_sha256"),
        ({"samples": (0, 1, 2)}, "samples"),
        ({"objective": "logit"}, "objective"),
        ({"heads": 8}, "heads"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(folder: Path, changes: dict[str, Any], field: str) -> None:
    before = files(folder)
    with pytest.raises(LabelError, match=rf"was labelled with another '{field}' \(.* now .*\)\. Choose another folder"):
        start(folder, make_header(12, **{"shard_size": 4, **changes}))
    assert files(folder) == before


@pytest.mark.parametrize("path", ["photos", "notes.txt"])
def test_what_is_no_folder_of_labels_is_left_alone(tmp_path: Path, path: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LabelError, match=r"exists and holds no labels\. Choose another folder"):
        start(tmp_path / path, make_header(3))
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["cat.jpg", "notes.txt", "photos"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LabelError, match=r"can't be written: .*\. Choose another folder"):
        start(tmp_path / "notes.txt" / "labels", make_header(3))


def edit(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    """Changes one tensor of a shard; None takes it out."""

    def damage(file: Path) -> None:
        tensors = load_file(file)
        value = change(tensors.pop(name))
        if value is not None:
            tensors[name] = np.ascontiguousarray(value)
        save_file(tensors, file)

    return damage


def put(value: float, where: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[where] = value
        return array

    return change


NOT_FINITE = r"sample 4: values that are not finite, or negative relevance\. Label again into another folder"
NOT_WHOLE = r"is not a shard of labels: .+\. Delete it and run 'foveate scorer label' again"
NOT_FITTING = r"sample \d: features .* and relevance .* do not fit .* visual tokens and \d+ channels\. Label again"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit("relevance", put(np.nan, (3,))), NOT_FINITE),
        (edit("relevance", put(np.inf, (3,))), NOT_FINITE),
        (edit("relevance", put(-1e-6, (3,))), NOT_FINITE),
        (edit("features", put(np.nan, (2, 3))), NOT_FINITE),
        (edit("features", put(-np.inf, (2, 3))), NOT_FINITE),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), NOT_WHOLE),
        (lambda file: file.write_bytes(file.read_bytes()[:5]), NOT_WHOLE),
        (lambda file: file.write_bytes(b""), NOT_WHOLE),
        (edit("relevance", lambda array: None), NOT_WHOLE),
        (edit("sample", lambda array: array[:-1]), NOT_WHOLE),
        (edit("num_tokens", lambda array: np.append(array, 3)), NOT_WHOLE),
        (edit("num_tokens", lambda array: array[:0]), NOT_WHOLE),
        (edit("num_tokens", lambda array: array.astype(np.float32)), NOT_WHOLE),
        (edit("grids", lambda array: array[:, :2]), NOT_WHOLE),
        (edit("grids", lambda array: array.ravel()), NOT_WHOLE),
        (edit("features", lambda array: array[0]), NOT_WHOLE),
        (edit("features", lambda array: array[:-1]), NOT_FITTING),
        (edit("features", lambda array: array[:, :-1]), NOT_FITTING),
        (edit("relevance", lambda array: array[:-1]), NOT_FITTING),
        (edit("grids", lambda array: array + 1), NOT_FITTING),
        (edit("num_grids", lambda array: array[::-1]), NOT_FITTING),
        (lambda file: file.unlink(), r"is not finished: shard-00001.* of 3 shards is missing\. Run the same .* again"),
    ],
)
def test_a_damaged_shard(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder / SHARD)
    with pytest.raises(LabelError, match=message) as caught:
        list(read_labels(folder))
    assert SHARD in str(caught.value)
    assert "\n" not in str(caught.value)


def edit_header(**changes: Any) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_header(schema_version=99), "has schema version 99, this foveate reads 1. Label again into another folder"),
        (edit_header(surprise=1), "is not a valid header: .*surprise.* Label again into another folder"),
        (edit_header(shard_size=0), "is not a valid header: .*shard_size.* Label again"),
        (edit_header(heads="two"), "is not a valid header: .*heads.* Label again"),
        (lambda file: file.write_text('{"schema_version": 1'), "is not a valid header: .* Label again"),
        (lambda file: file.write_bytes(b'{"checkpoint": "\xff"}'), "is not a valid header: .* Label again"),
        (lambda file: file.unlink(), "holds no labels: it has no labels.json. Run 'foveate scorer label CHECKPOINT DATA"),
    ],
)
def test_a_damaged_header(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder / HEADER)
    with pytest.raises(LabelError, match=message) as caught:
        list(read_labels(folder))
    assert "\n" not in str(caught.value)

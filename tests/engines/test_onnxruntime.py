"""The ONNX Runtime backend, with a model of two nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveate.engines import (
    BackendError,
    Bundle,
    GraphSpec,
    Manifest,
    Session,
    SessionOptions,
    TensorSpec,
    list_files,
    open_session,
    write_manifest,
)

SPEC = GraphSpec(
    name="double",
    file="graphs/double.onnx",
    inputs=(TensorSpec("x", "float32", ("rows", 2)), TensorSpec("row", "int64", ())),
    outputs=(TensorSpec("y", "float32", ("rows", 2)), TensorSpec("picked", "float32", (2,))),
)


def write_model(path: Path) -> None:
    """y = x + x; picked = y[row], which fails where there is no such row."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Gather", ["y", "row"], ["picked"], axis=0)],
        "double",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("row", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("picked", TensorProto.FLOAT, [2]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def make_bundle(folder: Path, manifest: Manifest) -> Bundle:
    write_manifest(folder, msgspec.structs.replace(manifest, graphs={"double": SPEC}, files=list_files(folder)))
    return Bundle.open(folder)


@pytest.fixture
def bundle(folder: Path, manifest: Manifest) -> Bundle:
    write_model(folder / "graphs/double.onnx")
    return make_bundle(folder, manifest)


@pytest.fixture
def session(bundle: Bundle) -> Iterator[Session]:
    session = open_session(bundle, "double", options=SessionOptions(threads=1))
    yield session
    session.close()


def feeds(rows: int = 3, row: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), "row": np.array(row, np.int64)}


def test_run(session: Session) -> None:
    assert session.spec == SPEC
    outputs = session.run(feeds())
    assert list(outputs) == ["y", "picked"]
    assert outputs["y"].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert outputs["picked"].tolist() == [4, 6]


def test_shapes_may_change_between_runs(session: Session) -> None:
    for rows in (1, 5, 2):
        assert session.run(feeds(rows, row=0))["y"].shape == (rows, 2)


def test_outputs_belong_to_the_caller(session: Session) -> None:
    first = session.run(feeds())["y"]
    session.run(feeds(row=2))
    session.close()
    assert first.tolist() == [[0, 2], [4, 6], [8, 10]]


def test_a_strided_feed_is_read_as_it_looks(session: Session) -> None:
    wide = np.arange(4_000_000, dtype=np.float32).reshape(1_000_000, 4)
    assert np.array_equal(session.run({**feeds(), "x": wide[:, ::2]})["y"], 2 * wide[:, ::2])


def test_buffer(session: Session) -> None:
    buffer = np.full((3, 2), -1, np.float32)
    outputs = session.run(feeds(), {"y": buffer})
    assert outputs["y"] is buffer
    assert buffer.tolist() == [[0, 2], [4, 6], [8, 10]]
    assert outputs["picked"].tolist() == [4, 6]


def test_update_in_place(session: Session) -> None:
    cache = np.ones((3, 2), np.float32)
    for step in range(1, 4):
        outputs = session.run({**feeds(), "x": cache}, {"y": cache})
        assert outputs["y"] is cache
        assert (cache == 2**step).all()


def test_feeds_are_checked(session: Session) -> None:
    with pytest.raises(BackendError, match="got float64, expected float32"):
        session.run({**feeds(), "x": np.zeros((3, 2))})


def test_buffers_are_checked(session: Session) -> None:
    with pytest.raises(BackendError, match="not contiguous"):
        session.run(feeds(), {"y": np.zeros((3, 4), np.float32)[:, ::2]})


def test_no_run_after_close(session: Session) -> None:
    session.close()
    with pytest.raises(BackendError, match="session of graph 'double' is closed"):
        session.run(feeds())


def test_failed_run(session: Session) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed in graph 'double'"):
        session.run(feeds(row=9))


def test_graph_that_does_not_load(folder: Path, manifest: Manifest) -> None:
    bundle = make_bundle(folder, manifest)
    with pytest.raises(BackendError, match=r"ONNX Runtime .* can't load graph 'double'"):
        open_session(bundle, "double")


def test_missing_library(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"'onnxruntime' is not installed\. Run: pip install 'foveate\[cpu\]'"):
        open_session(bundle, "double")

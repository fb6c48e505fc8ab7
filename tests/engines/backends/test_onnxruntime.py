"""The ONNX Runtime backend, with models of two nodes; its GPU side on arrays of a GPU that is the host."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foveate.engines import (
    BackendError,
    Bundle,
    GraphSpec,
    HostMemory,
    MachineError,
    Manifest,
    MissingPackageError,
    Session,
    SessionOptions,
    TensorSpec,
    list_files,
    open_session,
    write_manifest,
)
from foveate.engines.backends.device import CudaMemory, DeviceArray
from foveate.engines.backends.onnxruntime.session import OnnxRuntimeSession

SPEC = GraphSpec(
    name="double",
    file="graphs/double.onnx",
    inputs=(TensorSpec("x", "float32", ("rows", 2)), TensorSpec("row", "int64", ())),
    outputs=(TensorSpec("y", "float32", ("rows", 2), "device"), TensorSpec("picked", "float32", (2,), "device")),
)


def save_model(folder: Path, name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs), opset_imports=[helper.make_opsetid("", 24)], ir_version=11
    )
    onnx.save(model, folder / f"graphs/{name}.onnx")


def write_model(folder: Path) -> None:
    """y = x + x; picked = y[row], which fails where there is no such row."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Gather", ["y", "row"], ["picked"], axis=0)]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2]),
        helper.make_tensor_value_info("row", TensorProto.INT64, []),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2]),
        helper.make_tensor_value_info("picked", TensorProto.FLOAT, [2]),
    ]
    save_model(folder, "double", nodes, inputs, outputs)


def make_bundle(folder: Path, manifest: Manifest, spec: GraphSpec = SPEC) -> Bundle:
    write_manifest(folder, msgspec.structs.replace(manifest, graphs={spec.name: spec}, files=list_files(folder)))
    return Bundle.open(folder)


@pytest.fixture
def bundle(folder: Path, manifest: Manifest) -> Bundle:
    write_model(folder)
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


def test_failed_run(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed in graph 'double'"):
        session.run(feeds(row=9))
    assert capfd.readouterr() == ("", "")


def test_run_that_finds_no_memory(folder: Path, manifest: Manifest, capfd: pytest.CaptureFixture[str]) -> None:
    size = TensorSpec("size", "int64", (1,))
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["y"])]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, shape)]
        for name, kind, shape in (("size", TensorProto.INT64, [1]), ("y", TensorProto.FLOAT, ["rows"]))
    )
    save_model(folder, "zeros", nodes, inputs, outputs)
    spec = GraphSpec("zeros", "graphs/zeros.onnx", (size,), (TensorSpec("y", "float32", ("rows",)),))
    session = open_session(make_bundle(folder, manifest, spec), "zeros")
    with pytest.raises(
        MachineError,
        match=r"^there is not enough memory \(Failed to allocate memory for requested buffer of size \d+\)\. Use smaller",
    ):
        session.run({"size": np.array([2**50])})
    assert capfd.readouterr() == ("", "")


def test_graph_that_does_not_load(folder: Path, manifest: Manifest, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(folder, manifest)
    with pytest.raises(BackendError, match=r"ONNX Runtime .* can't load graph 'double'"):
        open_session(bundle, "double")
    assert capfd.readouterr() == ("", "")


def test_missing_library(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"'onnxruntime' is not installed, .*: pip install 'onnxruntime>=\S+'$"):
        open_session(bundle, "double")


class HostCuda:
    """What device arrays need of `Cuda`, with addresses of the host, which ONNX Runtime reads as its device 'cpu'.

    What is enqueued happens when someone waits for it, not earlier.
    """

    device = 0

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.blocks: dict[int, np.ndarray] = {}
        self.queue: list[Callable[[], object]] = []

    def malloc(self, nbytes: int) -> int:
        block = np.full(max(nbytes, 1), 255, np.uint8)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def free(self, address: int) -> None:
        self.queue.append(lambda: self.blocks.pop(address))

    def to_device(self, address: int, array: np.ndarray) -> None:
        taken = array.tobytes()
        self.queue.append(lambda: ctypes.memmove(address, taken, len(taken)))

    def to_host(self, array: np.ndarray, address: int) -> None:
        self.synchronize()
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.queue.append(lambda: ctypes.memmove(target, source, nbytes))

    def fill_zero(self, address: int, nbytes: int) -> None:
        self.queue.append(lambda: ctypes.memset(address, 0, nbytes))

    def synchronize(self) -> None:
        queue, self.queue = self.queue, []
        for action in queue:
            action()


@pytest.fixture
def memory() -> CudaMemory:
    return CudaMemory(HostCuda())  # type: ignore[arg-type]


def on_device(bundle: Bundle, graph: str, memory: CudaMemory) -> OnnxRuntimeSession:
    spec = bundle.graph(graph)
    inner = onnxruntime.InferenceSession(bundle.file(spec.file), providers=["CPUExecutionProvider"])
    return OnnxRuntimeSession(onnxruntime, inner, spec, memory, "cpu")


@pytest.fixture
def device_session(bundle: Bundle, memory: CudaMemory) -> Iterator[Session]:
    session = on_device(bundle, "double", memory)
    yield session
    session.close()


def test_memory_of_the_host(session: Session) -> None:
    assert isinstance(session.memory, HostMemory)
    assert all(type(array) is np.ndarray for array in session.run(feeds()).values())


def test_the_host_takes_feeds_of_a_device(session: Session, memory: CudaMemory) -> None:
    x = memory.asarray(feeds()["x"])
    assert session.run({**feeds(), "x": x})["y"].tolist() == [[0, 2], [4, 6], [8, 10]]


def test_the_host_refuses_a_buffer_of_a_device(session: Session, memory: CudaMemory) -> None:
    with pytest.raises(BackendError, match=r"buffer 'y' .* not in the session's memory\. Make it with that"):
        session.run(feeds(), {"y": memory.empty((3, 2), "float32")})


def test_outputs_stay_on_the_device(device_session: Session, memory: CudaMemory) -> None:
    assert device_session.memory is memory
    outputs = device_session.run(feeds())
    assert [(type(y), y.shape, y.dtype.name) for y in outputs.values()] == [
        (DeviceArray, (3, 2), "float32"),
        (DeviceArray, (2,), "float32"),
    ]
    assert np.asarray(outputs["y"]).tolist() == [[0, 2], [4, 6], [8, 10]]
    assert np.asarray(outputs["picked"]).tolist() == [4, 6]


def test_device_feeds_are_bound_where_they_lie(device_session: Session, memory: CudaMemory) -> None:
    y = device_session.run(feeds())["y"]
    again = device_session.run({"x": y, "row": memory.asarray(np.array(2))})
    assert np.asarray(again["picked"]).tolist() == [16, 20]
    assert np.asarray(device_session.run({**feeds(row=0), "x": y[1:]})["picked"]).tolist() == [8, 12]


def test_a_run_waits_for_what_is_enqueued(device_session: Session, memory: CudaMemory) -> None:
    x = memory.concatenate([memory.zeros((1, 2), "float32"), np.ones((2, 2), np.float32)])
    assert memory.cuda.queue  # type: ignore[attr-defined]
    assert np.asarray(device_session.run({**feeds(), "x": x})["y"]).tolist() == [[0, 0], [2, 2], [2, 2]]


def test_a_run_has_the_device_to_itself(device_session: Session, memory: CudaMemory) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(np.asarray(device_session.run(feeds())["y"]).tolist()))
    with memory.cuda.lock:  # another thread's turn
        thread.start()
        thread.join(0.2)
        assert not found
    thread.join()
    assert found == [[[0, 2], [4, 6], [8, 10]]]


def test_device_outputs_belong_to_the_caller(device_session: Session) -> None:
    first = device_session.run(feeds())["y"]
    device_session.run(feeds(row=2))
    device_session.close()
    assert np.asarray(first).tolist() == [[0, 2], [4, 6], [8, 10]]


def test_failed_run_on_the_device(device_session: Session) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed in graph 'double'"):
        device_session.run(feeds(row=9))


def test_device_update_in_place(device_session: Session, memory: CudaMemory) -> None:
    cache = memory.asarray(np.ones((3, 2), np.float32))
    for step in range(1, 4):
        outputs = device_session.run({**feeds(), "x": cache}, {"y": cache})
        assert outputs["y"] is cache
        assert (np.asarray(cache) == 2**step).all()


def test_a_buffer_of_the_host_is_filled_from_the_device(device_session: Session) -> None:
    buffer = np.full((3, 2), -1, np.float32)
    assert device_session.run(feeds(), {"y": buffer})["y"] is buffer
    assert buffer.tolist() == [[0, 2], [4, 6], [8, 10]]


@pytest.mark.parametrize("role", ["input 'x'", "buffer 'y'"])
def test_arrays_of_another_device(device_session: Session, role: str) -> None:
    stranger = CudaMemory(HostCuda()).zeros((3, 2), "float32")  # type: ignore[arg-type]
    x, buffers = (stranger, {}) if role == "input 'x'" else (feeds()["x"], {"y": stranger})
    with pytest.raises(BackendError, match=f"{role} of graph 'double' lies on a GPU, but not in the session's memory"):
        device_session.run({**feeds(), "x": x}, buffers)


def test_what_the_host_reads_comes_back_to_it(folder: Path, manifest: Manifest, memory: CudaMemory) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])
    names = ["scores", "embeds"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in names]
    save_model(folder, "double", [helper.make_node("Add", ["x", "x"], [name]) for name in names], [x], outputs)
    scores, embeds = names
    tensors = (TensorSpec(scores, "float32", ("rows",)), TensorSpec(embeds, "float32", ("rows",), "device"))
    spec = GraphSpec("double", "graphs/double.onnx", (TensorSpec("x", "float32", ("rows",)),), tensors)
    session = on_device(make_bundle(folder, manifest, spec), "double", memory)
    found = session.run({"x": np.ones(2, np.float32)})
    assert [type(array) for array in found.values()] == [np.ndarray, DeviceArray]
    assert all(np.asarray(array).tolist() == [2, 2] for array in found.values())
    nothing = session.run({"x": memory.empty((0,), "float32")})
    assert [array.shape for array in nothing.values()] == [(0,), (0,)]


CACHE = GraphSpec(
    name="cache",
    file="graphs/cache.onnx",
    inputs=(
        TensorSpec("past", "float32", ("batch", 2, "kv_capacity", 4)),
        TensorSpec("update", "float32", ("batch", 2, "sequence", 4)),
        TensorSpec("write_indices", "int64", ("batch",)),
    ),
    outputs=(
        TensorSpec("present", "float32", ("batch", 2, "kv_capacity", 4), "device"),
        TensorSpec("total", "float32", (), "device"),
    ),
)


@pytest.fixture
def cache_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """A KV cache that is written as in `decoder_standard`, and read."""
    nodes = [
        helper.make_node("TensorScatter", ["past", "update", "write_indices"], ["present"], axis=2),
        helper.make_node("ReduceSum", ["present"], ["total"], keepdims=0),
    ]
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs, outputs = (
        [helper.make_tensor_value_info(tensor.name, types[tensor.dtype], tensor.shape) for tensor in tensors]
        for tensors in (CACHE.inputs, CACHE.outputs)
    )
    save_model(folder, "cache", nodes, inputs, outputs)
    return make_bundle(folder, manifest, CACHE)


@pytest.mark.parametrize("place", ["host", "device"])
def test_the_cache_is_written_in_place(
    cache_bundle: Bundle, memory: CudaMemory, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    session: Any = open_session(cache_bundle, "cache") if place == "host" else on_device(cache_bundle, "cache", memory)
    # Of a cache that it has to copy ONNX Runtime warns, which sessions otherwise keep quiet.
    session._quiet.log_severity_level = 2
    expected = np.zeros((2, 2, 16, 4), np.float32)
    cache = session.memory.zeros(expected.shape, "float32")
    for step, start in enumerate(([0, 3], [5, 4], [6, 13]), 1):
        update = np.full((2, 2, 3, 4), step, np.float32)
        for row, index in enumerate(start):
            expected[row, :, index : index + 3] = step
        outputs = session.run({"past": cache, "update": update, "write_indices": np.array(start)}, {"present": cache})
        assert outputs["present"] is cache
        assert np.array_equal(np.asarray(cache), expected)
        assert np.asarray(outputs["total"]) == expected.sum()
    assert capfd.readouterr().err == ""
    session.run({"past": cache, "update": update, "write_indices": np.array(start)})
    assert "in-place optimization not activated" in capfd.readouterr().err


@pytest.mark.gpu
def test_cuda(cache_bundle: Bundle) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    session = open_session(cache_bundle, "cache", options=SessionOptions(provider="cuda"))
    cache = session.memory.zeros((1, 2, 16, 4), "float32")
    for start in (0, 3):
        fed = {"past": cache, "update": np.ones((1, 2, 3, 4), np.float32), "write_indices": np.array([start])}
        outputs = session.run(fed, {"present": cache})
        assert isinstance(outputs["total"], DeviceArray)
        assert np.asarray(outputs["total"]) == np.asarray(cache).sum() == 8 * (start + 3)


def test_a_failure_is_told_once(bundle: Bundle, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the error alone: ONNX Runtime writes no line of its own beside it."""
    session = open_session(bundle, "double")
    monkeypatch.setattr("foveate.engines.backends.onnxruntime.session.check_feeds", lambda feeds, spec: {})
    with pytest.raises(BackendError, match="ONNX Runtime failed in graph 'double'"):
        session.run({"x": np.ones((3, 5), np.float32)})
    assert capfd.readouterr() == ("", "")

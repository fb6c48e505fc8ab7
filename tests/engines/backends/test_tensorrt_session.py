"""Engines as sessions, on a fake GPU that computes with ONNX Runtime."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foveate.engines import BackendError, GraphSpec, MachineError, Range, TensorSpec
from foveate.engines.backends.device import CudaMemory, DeviceArray
from foveate.engines.backends.tensorrt.context import TensorRTRuntime
from foveate.engines.backends.tensorrt.session import TensorRTSession
from tests.engines.backends.test_device import Interface
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import Device, FakeContext, FakeEngine, FakeTensorRT, fake_engine


@pytest.fixture
def device() -> Device:
    return Device()


DOUBLE = GraphSpec(
    name="double",
    file="double.onnx",
    inputs=(TensorSpec("x", "float32", ("rows", 2)), TensorSpec("row", "int64", ())),
    outputs=(TensorSpec("y", "float32", ("rows", 2)), TensorSpec("picked", "float32", (2,))),
)
ROWS = {"rows": Range(0, 4, 2_000_000)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Gather", ["y", "row"], ["picked"], axis=0)]
    return write_model(tmp_path_factory.mktemp("double") / "double.onnx", DOUBLE, nodes)


def write_model(path: Path, spec: GraphSpec, nodes: list[onnx.NodeProto]) -> Path:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs, outputs = (
        [helper.make_tensor_value_info(tensor.name, types[tensor.dtype], tensor.shape) for tensor in tensors]
        for tensors in (spec.inputs, spec.outputs)
    )
    graph = helper.make_graph(nodes, spec.name, inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


class TestRun:
    """y = x + x; picked = y[row], which fails where there is no such row."""

    @pytest.fixture
    def session(self, device: Device, file: Path) -> Iterator[TensorRTSession]:
        session = device.open(file, DOUBLE, ROWS, host=frozenset({"picked"}))
        yield session
        session.close()

    @staticmethod
    def feeds(rows: int = 3, row: int = 1) -> dict[str, Any]:
        return {"x": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), "row": np.array(row)}

    def test_outputs_are_on_the_host_or_on_the_gpu(self, session: TensorRTSession) -> None:
        outputs = session.run(self.feeds())
        assert list(outputs) == ["y", "picked"]
        assert isinstance(outputs["picked"], np.ndarray)
        assert outputs["picked"].tolist() == [4, 6]
        assert isinstance(outputs["y"], DeviceArray)
        assert np.asarray(outputs["y"]).tolist() == [[0, 2], [4, 6], [8, 10]]

    def test_nothing_waits_for_what_is_not_read(self, device: Device, file: Path) -> None:
        session = device.open(file, DOUBLE, ROWS)
        with device.cuda.counted() as counts:
            session.run(self.feeds())
        assert counts["cudaStreamSynchronize"] == 0
        assert device.trt.contexts[0].executions == 0

    def test_outputs_belong_to_the_caller(self, session: TensorRTSession) -> None:
        first = session.run(self.feeds())
        session.run(self.feeds(row=2))
        session.close()
        assert np.asarray(first["y"]).tolist() == [[0, 2], [4, 6], [8, 10]]
        assert np.asarray(first["picked"]).tolist() == [4, 6]

    def test_shapes_may_change_between_runs(self, session: TensorRTSession) -> None:
        for rows in (1, 500, 2, 1000, 1):
            outputs = session.run(self.feeds(rows, row=0))
            assert np.array_equal(np.asarray(outputs["y"]), 2 * self.feeds(rows)["x"])

    def test_a_graph_is_launched_with_new_feeds(self, session: TensorRTSession, device: Device) -> None:
        with device.cuda.counted() as counts:
            for value in range(8):
                feeds = self.feeds() | {"x": np.full((3, 2), value, np.float32)}
                outputs = session.run(feeds)
                assert np.asarray(outputs["y"]).tolist() == [[2 * value] * 2] * 3
                assert np.asarray(outputs["picked"]).tolist() == [2 * value] * 2
        assert counts["cudaGraphLaunch"] == 6

    def test_few_graphs_are_kept(self, session: TensorRTSession, device: Device) -> None:
        kept = [session.memory.empty((3, 2), "float32") for _ in range(8)]
        with device.cuda.counted() as counts:
            for buffer in kept:
                for _ in range(3):
                    session.run(self.feeds(), {"y": buffer})
            session.close()
        assert counts["cudaGraphLaunch"] == counts["cudaGraphInstantiate"] == counts["cudaGraphExecDestroy"] == 8

    @pytest.mark.parametrize(("graphs", "rows", "copied"), [(False, 3, 0), (True, 3, 3 * 8), (True, 1_200_000, 0)])
    def test_feeds_on_the_gpu_are_used_where_they_lie(self, graphs: bool, rows: int, copied: int, file: Path) -> None:
        """But for small ones where graphs want them at the same address each time."""
        device = Device(graphs=graphs)
        session = device.open(file, DOUBLE, ROWS)
        feeds = self.feeds(rows)
        feeds["x"] = session.memory.asarray(feeds["x"])
        buffers = {"y": session.memory.empty((rows, 2), "float32"), "picked": session.memory.empty((2,), "float32")}
        with device.cuda.counted() as counts:
            session.run(feeds, buffers)
        assert (counts["host_to_device"], counts["device_to_device"]) == (8, copied)
        assert np.array_equal(np.asarray(buffers["y"]), 2 * self.feeds(rows)["x"])

    @pytest.mark.parametrize(("graphs", "rows", "copied"), [(False, 3, 0), (True, 3, 3 * 8), (True, 1_200_000, 0)])
    def test_new_outputs(self, graphs: bool, rows: int, copied: int, file: Path) -> None:
        device = Device(graphs=graphs)
        session = device.open(file, DOUBLE, ROWS, host=frozenset({"picked"}))
        with device.cuda.counted() as counts:
            y = session.run(self.feeds(rows))["y"]
        assert counts["device_to_device"] == copied
        assert np.array_equal(np.asarray(y), 2 * self.feeds(rows)["x"])

    def test_arrays_of_another_library(self, session: TensorRTSession) -> None:
        x = session.memory.asarray(self.feeds()["x"])
        outputs = session.run(self.feeds() | {"x": Interface(x)})
        assert np.asarray(outputs["y"]).tolist() == [[0, 2], [4, 6], [8, 10]]

    def test_a_view_that_is_not_aligned_is_copied_on_the_gpu(self, file: Path) -> None:
        device = Device(graphs=False)
        session = device.open(file, DOUBLE, ROWS, host=frozenset({"picked"}))
        x = session.memory.asarray(self.feeds(5)["x"])[2:]
        with device.cuda.counted() as counts:
            outputs = session.run(self.feeds() | {"x": x})
        assert (counts["device_to_device"], counts["device_to_host"]) == (24, 8)
        assert np.asarray(outputs["y"]).tolist() == [[8, 10], [12, 14], [16, 18]]

    def test_a_strided_feed_is_read_as_it_looks(self, session: TensorRTSession) -> None:
        wide = np.arange(12, dtype=np.float32).reshape(3, 4)
        assert np.array_equal(np.asarray(session.run(self.feeds() | {"x": wide[:, ::2]})["y"]), 2 * wide[:, ::2])

    def test_staging_is_kept_and_grows_ahead(self, session: TensorRTSession, device: Device) -> None:
        buffer = session.memory.empty((1000, 2), "float32")
        session.run(self.feeds(400), {"y": buffer[:400]})
        with device.cuda.counted() as counts:
            for rows in (300, 401, 500, 800):
                session.run(self.feeds(rows), {"y": buffer[:rows]})
        assert counts["cudaMallocAsync"] == 1 + 3  # x at 401 rows, scratch memory at each size but the first

    def test_no_rows(self, device: Device, tmp_path: Path) -> None:
        spec = GraphSpec("copy", "copy.onnx", DOUBLE.inputs[:1], DOUBLE.outputs[:1])
        file = write_model(tmp_path / "copy.onnx", spec, [helper.make_node("Add", ["x", "x"], ["y"])])
        session = device.open(file, spec, ROWS)
        for x in (np.empty((0, 2), np.float32), session.memory.empty((0, 2), "float32")):
            assert np.asarray(session.run({"x": x})["y"]).shape == (0, 2)

    def test_buffers(self, session: TensorRTSession) -> None:
        y, picked = session.memory.zeros((3, 2), "float32"), np.zeros(2, np.float32)
        outputs = session.run(self.feeds(), {"y": y, "picked": picked})
        assert outputs["y"] is y
        assert outputs["picked"] is picked
        assert np.asarray(y).tolist() == [[0, 2], [4, 6], [8, 10]]
        assert picked.tolist() == [4, 6]

    def test_buffers_the_other_way_round(self, session: TensorRTSession) -> None:
        y, picked = np.zeros((3, 2), np.float32), session.memory.zeros((2,), "float32")
        outputs = session.run(self.feeds(), {"y": y, "picked": picked})
        assert outputs["y"] is y
        assert outputs["picked"] is picked
        assert y.tolist() == [[0, 2], [4, 6], [8, 10]]
        assert np.asarray(picked).tolist() == [4, 6]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda memory: memory.zeros((4, 2), "float32"),
                r"buffer 'y' of graph 'double': got shape \[4, 2\], expected \[3, 2\]",
            ),
            (
                lambda memory: memory.zeros((4, 2), "float32")[1:],
                "belongs to another Cuda or is a view that starts at no multiple of",
            ),
            (lambda memory: CudaMemory(FakeCuda()).zeros((3, 2), "float32"), "belongs to another Cuda or is a view"),
            (lambda memory: memory.zeros((3, 2), "float16"), "got float16, expected float32"),
        ],
        ids=["shape", "view", "cuda", "dtype"],
    )
    def test_buffers_that_do_not_fit(self, make: Any, message: str, session: TensorRTSession) -> None:
        with pytest.raises(BackendError, match=message):
            session.run(self.feeds(), {"y": make(session.memory)})

    def test_a_buffer_whose_size_only_the_engine_knows(self, device: Device, file: Path) -> None:
        outputs = (TensorSpec("y", "float32", ("others", 2)), DOUBLE.outputs[1])
        session = device.open(file, msgspec.structs.replace(DOUBLE, outputs=outputs), ROWS)
        with pytest.raises(
            BackendError, match=r"buffer 'y' of graph 'double': got shape \[2, 2\], expected \[3, 2\]\. Make it fit"
        ):
            session.run(self.feeds(), {"y": session.memory.empty((2, 2), "float32")})

    def test_feeds_are_checked(self, session: TensorRTSession) -> None:
        with pytest.raises(BackendError, match="got float64, expected float32"):
            session.run(self.feeds() | {"x": np.zeros((3, 2))})
        with pytest.raises(
            BackendError, match=r"input 'x' of graph 'double': the array belongs to another Cuda\. Make it with"
        ):
            session.run(self.feeds() | {"x": CudaMemory(FakeCuda()).zeros((3, 2), "float32")})

    def test_sizes_that_no_profile_takes(self, session: TensorRTSession) -> None:
        with pytest.raises(BackendError, match=r"no profile takes \{'rows': 2000001\}"):
            session.run(self.feeds(2000001))

    def test_sizes_that_the_engine_refuses(self, device: Device, file: Path) -> None:
        engine = device.runtime.load(fake_engine(file, [ROWS]), "it")
        session = TensorRTSession(device.runtime, engine, DOUBLE, lambda symbols: 0)
        session.run(self.feeds())
        with pytest.raises(BackendError) as caught:
            session.run(self.feeds(2000001))
        assert str(caught.value) == (
            "TensorRT 10.16.1 refuses shape [2000001, 2] of 'x' in graph 'double' (profile 0): "
            "x: 2000001 is not in [0, 2000000]. Build the engine again."
        )
        assert np.asarray(session.run(self.feeds())["picked"]).tolist() == [4, 6]

    def test_a_run_that_fails(self, session: TensorRTSession, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FakeContext, "execute_async_v3", lambda *_: False)
        with pytest.raises(
            BackendError, match=r"TensorRT 10.16.1 failed in graph 'double' \(profile 0\): it gives no reason\."
        ):
            session.run(self.feeds())

    def test_a_run_that_fails_on_the_gpu(self, device: Device, file: Path) -> None:
        session = device.open(file, DOUBLE, ROWS)
        outputs = session.run(self.feeds(row=9))
        with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
            np.asarray(outputs["picked"])

    def test_out_of_memory(self, file: Path) -> None:
        device = Device(total_bytes=30_000)
        session = device.open(file, DOUBLE, ROWS)
        with pytest.raises(MachineError, match=r"GPU 0 .* is out of memory: .* bytes wanted"):
            session.run(self.feeds(1000))
        assert np.asarray(session.run(self.feeds())["picked"]).tolist() == [4, 6]

    def test_no_run_after_close_and_nothing_is_left(self, device: Device, session: TensorRTSession) -> None:
        for _ in range(4):
            session.run(self.feeds())
        session.close()
        session.close()
        gc.collect()
        assert device.cuda.fake.used_bytes == device.runtime.scratch.reserve(0).nbytes
        with pytest.raises(BackendError, match=r"session of graph 'double' is closed\. Open another one\."):
            session.run(self.feeds())

    def test_an_older_library_updates_nothing_in_place(
        self, device: Device, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(FakeEngine, "get_aliased_input_tensor")
        session = device.open(file, DOUBLE, ROWS, host=frozenset({"picked"}))
        assert np.asarray(session.run(self.feeds())["picked"]).tolist() == [4, 6]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"inputs": (DOUBLE.inputs[0],)}, "has INPUT INT64 on DEVICE as 'row', expected nothing. Build it again."),
            ({"outputs": DOUBLE.outputs[:1]}, "has OUTPUT FLOAT on DEVICE as 'picked', expected nothing. Build it again."),
            (
                {"inputs": (TensorSpec("x", "bfloat16", ("rows", 2)), DOUBLE.inputs[1])},
                "has INPUT FLOAT on DEVICE as 'x', expected INPUT BF16 on DEVICE. Build it again.",
            ),
            (
                {"inputs": (*DOUBLE.inputs, TensorSpec("z", "bool", ()))},
                "has nothing as 'z', expected INPUT BOOL on DEVICE. Build it again.",
            ),
        ],
        ids=["input", "output", "dtype", "missing"],
    )
    def test_an_engine_of_another_graph(self, change: Any, message: str, device: Device, file: Path) -> None:
        with pytest.raises(BackendError) as caught:
            device.open(file, msgspec.structs.replace(DOUBLE, **change), ROWS)
        assert str(caught.value) == f"the engine of graph 'double' {message}"


def test_an_engine_that_does_not_load(device: Device) -> None:
    with pytest.raises(BackendError) as caught:
        device.runtime.load(b"not an engine", "engines/vision")
    assert str(caught.value) == "TensorRT 10.16.1 can't load engines/vision: the plan is damaged. Build it again."


def test_a_library_that_does_not_start(device: Device) -> None:
    def refuse(logger: Any) -> None:
        logger.log(device.trt.ILogger.Severity.ERROR, "no such device")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    device.trt.Runtime = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(BackendError, match=r"TensorRT 10.16.1 can't start: no such device\. Update the NVIDIA driver\."):
        TensorRTRuntime(device.trt, "TensorRT", device.cuda)


class TestFake:
    """The fake has the names of the real thing."""

    @pytest.fixture
    def trt(self) -> Any:
        return pytest.importorskip("tensorrt_rtx_bindings")

    @pytest.mark.parametrize(("fake", "real"), [(FakeEngine, "ICudaEngine"), (FakeContext, "IExecutionContext")])
    def test_methods(self, fake: type, real: str, trt: Any) -> None:
        ours = {name for name in vars(fake) if not name.startswith("_")} - {"tensor", "dtype"}
        assert ours <= set(dir(getattr(trt, real)))

    def test_enums(self, trt: Any) -> None:
        assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
        for severity in FakeTensorRT.ILogger.Severity:
            assert int(getattr(trt.ILogger.Severity, severity.name)) == severity
        for name in ("BOOL", "UINT8", "INT8", "INT32", "INT64", "HALF", "BF16", "FLOAT"):
            assert getattr(trt.DataType, name).name == name
        assert (trt.TensorIOMode.INPUT.name, trt.TensorIOMode.OUTPUT.name) == ("INPUT", "OUTPUT")
        assert trt.TensorLocation.DEVICE.name == "DEVICE"

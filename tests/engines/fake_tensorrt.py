"""TensorRT on the fake GPU: graphs are computed by ONNX Runtime, where their inputs and outputs lie."""

# The names are those of the library.
# ruff: noqa: N802

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from msgspec.structs import replace

from foveate.engines import BackendError, GraphProfile, GraphSpec, Range
from foveate.engines.backends.tensorrt.context import TensorRTRuntime
from foveate.engines.backends.tensorrt.session import TensorRTSession
from foveate.engines.builds.ranges import choose
from tests.engines.fake_cuda import STREAM, FakeCuda, host_view

_SCRATCH = 0xE5
_ORT_TYPES = {
    "tensor(bool)": ("bool", "BOOL"),
    "tensor(int32)": ("int32", "INT32"),
    "tensor(int64)": ("int64", "INT64"),
    "tensor(float16)": ("float16", "HALF"),
    "tensor(float)": ("float32", "FLOAT"),
}


def fake_engine(onnx_file: Path, profiles: Sequence[Mapping[str, Range]]) -> bytes:
    """The bytes of an engine of a graph, with the ranges of each profile."""
    ranges = [{name: (limits.min, limits.max) for name, limits in profile.items()} for profile in profiles]
    return json.dumps({"onnx": str(onnx_file), "profiles": ranges}).encode()


class FakeTensorRT:
    """The part of the module `tensorrt`, or with `rtx` of `tensorrt_rtx`, that runs engines."""

    __version__ = "10.16.1"

    class ILogger:
        class Severity(IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

    class ExecutionContextAllocationStrategy(Enum):
        STATIC = 0
        USER_MANAGED = 2

    def __init__(self, cuda: FakeCuda, rtx: bool = False) -> None:
        self.cuda = cuda
        self.contexts: list[FakeContext] = []
        if rtx:
            self.CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])

    def Runtime(self, logger: Any) -> Any:
        def deserialize(data: bytes) -> FakeEngine | None:
            try:
                return FakeEngine(self, logger, **json.loads(bytes(data)))
            except ValueError:
                logger.log(self.ILogger.Severity.ERROR, "the plan is\ndamaged")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    """A graph in ONNX Runtime, with profiles."""

    def __init__(self, trt: FakeTensorRT, logger: Any, onnx: str, profiles: list[dict[str, list[int]]]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self.trt, self.logger, self.profiles = trt, logger, profiles
        self.ort = onnxruntime
        self.inner = onnxruntime.InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.inner.get_inputs()}
        self.outputs = {value.name: value for value in self.inner.get_outputs()}
        self.aliases = _find_scattered(onnx)
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_ORT_TYPES[self.tensor(name).type][1])

    def get_tensor_location(self, name: str) -> Any:
        return SimpleNamespace(name="DEVICE")

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name)

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(cuda_graph_strategy=None, create_runtime_cache=FakeKernels)
        config.set_runtime_cache = lambda cache: setattr(config, "kernels", cache)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, config: Any) -> FakeContext:
        strategy = getattr(config, "strategy", config)
        assert strategy is self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = FakeContext(self, getattr(config, "cuda_graph_strategy", None))
        self.trt.contexts.append(context)
        return context

    def tensor(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]

    def dtype(self, name: str) -> str:
        return _ORT_TYPES[self.tensor(name).type][0]


class FakeKernels:
    """`IRuntimeCache`."""

    def __init__(self) -> None:
        self.kernels = b"compiled"

    def deserialize(self, blob: bytes) -> bool:
        return blob == self.kernels

    def serialize(self) -> bytes:
        return self.kernels


class FakeContext:
    """Refuses what TensorRT refuses or computes wrongly: shapes outside of the profile, addresses that are not aligned or not
    allocated, too little scratch memory, a cache that is not updated in place, a graph of earlier shapes."""

    def __init__(self, engine: FakeEngine, strategy: Any) -> None:
        self._engine = engine
        self._runtime = engine.trt.cuda.fake
        self.strategy = strategy
        self._profile: dict[str, list[int]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._epoch = 0
        self._enqueued_epoch = -1
        self.executions = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = self._engine.profiles[profile_index]
        return self._expect(stream_handle == STREAM, "another stream")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        for dim, size in zip(self._engine.inputs[name].shape, shape, strict=True):
            low, high = self._profile[dim] if isinstance(dim, str) else (dim, dim)
            if not self._expect(low <= size <= high, f"{name}: {size} is not in [{low}, {high}]"):
                return False
        self._epoch += self._shapes.get(name) != shape
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return self._expect(memory % 256 == 0 and memory > 0, f"{name} is not aligned")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        values = self._engine.inputs.values()
        sizes = {dim: size for value in values for dim, size in zip(value.shape, self._shapes[value.name], strict=True)}
        shape = [sizes.get(dim, dim) for dim in self._engine.outputs[name].shape]
        if any(isinstance(size, str) for size in shape):  # known to the library only, e.g. visual tokens from patches
            zeros = {value.name: np.zeros(self._shapes[value.name], self._engine.dtype(value.name)) for value in values}
            shape = self._engine.inner.run([name], zeros)[0].shape
        return tuple(shape)

    def update_device_memory_size_for_shapes(self) -> int:
        return 16 * sum(map(math.prod, self._shapes.values()))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        names = (*self._engine.inputs, *self._engine.outputs)
        shapes = {name: self.get_tensor_shape(name) for name in names}
        memory = {name: (self._addresses.get(name, 0), self._nbytes(name, shapes[name])) for name in names}
        addresses, scratch, epoch = dict(self._addresses), self._scratch, self._epoch
        ready = all(
            [
                self._expect(stream_handle == STREAM, "another stream"),
                self._expect(scratch[1] >= self.update_device_memory_size_for_shapes(), "too little device memory"),
                self._expect(self._runtime.is_allocated(*scratch), "the device memory is gone"),
                self._expect(not self._runtime.capturing or self._enqueued_epoch == epoch, "capture at first sight"),
                *(
                    self._expect(addresses.get(a) == addresses.get(b), f"{a} is not {b}")
                    for a, b in self._engine.aliases.items()
                ),
                *(self._expect(self._runtime.is_allocated(*memory[name]), f"{name} is not allocated") for name in names),
            ]
        )
        if not ready:
            return False
        self._enqueued_epoch = epoch

        def execute() -> None:
            host_view(scratch[0], (scratch[1],), "uint8").fill(_SCRATCH)
            self._execute(shapes, addresses)

        def is_valid() -> bool:
            return epoch == self._epoch and all(self._runtime.is_allocated(*piece) for piece in (scratch, *memory.values()))

        execute.is_valid = is_valid  # type: ignore[attr-defined]
        self._runtime.enqueue(execute)
        return True

    def _execute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        engine = self._engine
        binding = engine.inner.io_binding()
        views = {name: host_view(addresses[name], shape, engine.dtype(name)) for name, shape in shapes.items()}
        for name, view in views.items():
            bind = binding.bind_ortvalue_input if name in engine.inputs else binding.bind_ortvalue_output
            bind(name, engine.ort.OrtValue.ortvalue_from_numpy(view))
        engine.inner.run_with_iobinding(binding)
        self.executions += 1

    def _nbytes(self, name: str, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * np.dtype(self._engine.dtype(name)).itemsize

    def _expect(self, right: bool, complaint: str) -> bool:
        if not right:
            self._engine.logger.log(FakeTensorRT.ILogger.Severity.ERROR, complaint)
        return right


class Device:
    """A fake GPU with TensorRT on it."""

    def __init__(self, rtx: bool = False, graphs: bool = True, total_bytes: int = 2**30) -> None:
        self.cuda = FakeCuda(total_bytes=total_bytes)
        self.trt = FakeTensorRT(self.cuda, rtx)
        self.runtime = TensorRTRuntime(self.trt, "TensorRT", self.cuda, graphs)

    def open(
        self, file: Path, spec: GraphSpec, *ranges: dict[str, Range], host: frozenset[str] = frozenset()
    ) -> TensorRTSession:
        engine = self.runtime.load(fake_engine(file, ranges), f"the engine of graph '{spec.name}'")
        profiles = [GraphProfile(str(index), each) for index, each in enumerate(ranges)]

        def chosen(symbols: Mapping[str, int]) -> int:
            index = choose(profiles, symbols)
            if index is None:
                raise BackendError(f"no profile takes {symbols}")
            return index

        outputs = tuple(replace(t, location="host" if t.name in host else "device") for t in spec.outputs)
        return TensorRTSession(self.runtime, engine, replace(spec, outputs=outputs), chosen)


def _find_scattered(onnx_file: str) -> dict[str, str]:
    """Output -> the input that `TensorScatter` writes in place."""
    import onnx

    nodes = onnx.load(onnx_file, load_external_data=False).graph.node
    return {node.output[0]: node.input[0] for node in nodes if node.op_type == "TensorScatter"}

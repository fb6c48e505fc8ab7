"""Engines of TensorRT and TensorRT-RTX as sessions: graphs run one after the other, arrays stay on the GPU in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foveate.engines.backends.cuda import Workspace
from foveate.engines.backends.device import CudaMemory, DeviceArray, adopt, fill
from foveate.engines.backends.feeds import check_buffers, check_feeds
from foveate.engines.backends.interrupt import current_interrupt
from foveate.engines.backends.memory import Array
from foveate.engines.backends.session import Arrays
from foveate.engines.backends.tensorrt.context import ALIGNMENT, Context, TensorRTRuntime
from foveate.engines.backends.tensorrt.kernels import KernelCache
from foveate.engines.errors import BackendError
from foveate.engines.format import dtypes
from foveate.engines.format.spec import GraphSpec, TensorSpec

_DTYPES = {name: name.upper() for name in dtypes.NAMES} | {"float16": "HALF", "bfloat16": "BF16", "float32": "FLOAT"}
"""numpy's name -> the library's."""
_STEADY_BYTES = 8 * 1024 * 1024
"""Arrays up to this size go through kept memory where runs become CUDA graphs: a decode step then finds all of its addresses
unchanged. A prefill, which gains nothing from that, copies nothing."""


class TensorRTSession:
    """A graph in one of the libraries; see `Session`. One run at a time has the GPU, of all sessions on it.

    Host feeds are copied to memory that is kept between runs. Outputs that are not read on the host are new device arrays, and
    nothing waits for them.

    Args:
        runtime: what the sessions share.
        engine: what `runtime.load` gave.
        spec: the graph with the dtypes and fixed dimensions of the engine.
        choose: index of the engine's profile for the values of the symbols; raises where none fits.
        kernels: where a library that compiles kernels at run time keeps them; written when the session closes.

    Raises:
        BackendError: the engine was built from another graph.
    """

    def __init__(
        self,
        runtime: TensorRTRuntime,
        engine: Any,
        spec: GraphSpec,
        choose: Callable[[Mapping[str, int]], int],
        kernels: KernelCache | None = None,
    ) -> None:
        self.spec = spec
        self.memory = CudaMemory(runtime.cuda)
        self._runtime = runtime
        self._engine = engine
        self._choose = choose
        self._kernels = kernels
        self._contexts: dict[int, Context] = {}
        self._workspaces: dict[str, Workspace] = {}
        self._check_engine()
        self._in_place = self._find_in_place()
        self._shared = {*self._in_place, *self._in_place.values()}

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, Array]:
        """See `Session.run`. An array that is updated in place has to be on the device, fed and passed as buffer.

        GPU tensors of other libraries are taken as feeds where they lie (DLPack, `__cuda_array_interface__`).
        """
        if (interrupt := current_interrupt()) is not None:
            interrupt.check()  # between runs: a run goes to its end
        with self._runtime.cuda.lock:
            return self._run(feeds, buffers or {})

    def close(self) -> None:
        """Frees the engine and what its runs kept."""
        with self._runtime.cuda.lock:
            if self._engine is not None:
                self._runtime.cuda.synchronize()
                if self._kernels is not None:
                    self._kernels.save()
            for context in self._contexts.values():
                context.close()
            self._contexts.clear()
            self._workspaces.clear()
            self._engine = None

    def _run(self, feeds: Arrays, buffers: Arrays) -> dict[str, Array]:
        if self._engine is None:
            raise BackendError(f"the session of graph '{self.spec.name}' is closed. Open another one.")
        feeds = {name: adopt(array, self._runtime.cuda) for name, array in feeds.items()}
        symbols = check_feeds(feeds, self.spec)
        check_buffers(buffers, self.spec, symbols)
        self._check_in_place(feeds, buffers)
        self._runtime.cuda.activate()
        context = self._context(self._choose(symbols))
        shapes = context.set_shapes({name: array.shape for name, array in feeds.items()})
        outputs = {tensor.name: self._output(tensor, shapes[tensor.name], buffers) for tensor in self.spec.outputs}
        inputs = {tensor.name: self._input(tensor, feeds[tensor.name]) for tensor in self.spec.inputs}
        context.run({name: array.ptr for name, array in (inputs | outputs).items()})
        return {tensor.name: self._result(tensor, outputs[tensor.name], buffers) for tensor in self.spec.outputs}

    def _context(self, profile: int) -> Context:
        if profile not in self._contexts:
            outputs = [tensor.name for tensor in self.spec.outputs]
            self._contexts[profile] = Context(self._runtime, self._engine, profile, self.spec.name, outputs, self._kernels)
        return self._contexts[profile]

    def _input(self, tensor: TensorSpec, array: Array) -> DeviceArray:
        """The feed on the device, at an address that the library takes."""
        if isinstance(array, DeviceArray):
            if array.cuda is not self._runtime.cuda:
                where = f"input '{tensor.name}' of graph '{self.spec.name}'"
                raise BackendError(f"{where}: the array belongs to another Cuda. Make it with the session's memory.")
            if array.ptr % ALIGNMENT == 0 and not self._is_steady(tensor, array.shape):
                return array
        kept = self._kept(tensor, array.shape)
        fill(kept, array)
        return kept

    def _output(self, tensor: TensorSpec, shape: tuple[int, ...], buffers: Arrays) -> DeviceArray:
        """Where the library writes an output."""
        buffer = buffers.get(tensor.name)
        where = f"buffer '{tensor.name}' of graph '{self.spec.name}'"
        if buffer is not None and buffer.shape != shape:
            raise BackendError(f"{where}: got shape {list(buffer.shape)}, expected {list(shape)}. Make it fit the inputs.")
        if isinstance(buffer, DeviceArray):
            if buffer.cuda is not self._runtime.cuda or buffer.ptr % ALIGNMENT:
                raise BackendError(
                    f"{where}: the array belongs to another Cuda or is a view that starts at no multiple of {ALIGNMENT} bytes. "
                    "Pass a whole array of the session's memory."
                )
            return buffer
        if buffer is not None or tensor.location == "host" or self._is_steady(tensor, shape):
            return self._kept(tensor, shape)
        return self.memory.empty(shape, tensor.dtype)

    def _result(self, tensor: TensorSpec, written: DeviceArray, buffers: Arrays) -> Array:
        """What the caller gets for an output."""
        buffer = buffers.get(tensor.name)
        if isinstance(buffer, np.ndarray):
            self._runtime.cuda.to_host(buffer, written.ptr)
            return buffer
        if buffer is not None:
            return buffer
        if tensor.location == "host":
            return np.asarray(written)
        if not self._is_steady(tensor, written.shape):
            return written
        new = self.memory.empty(written.shape, tensor.dtype)
        fill(new, written)
        return new

    def _is_steady(self, tensor: TensorSpec, shape: tuple[int, ...]) -> bool:
        """Whether an array goes through kept memory though it is on the device."""
        return self._runtime.graphs and tensor.name not in self._shared and _nbytes(tensor, shape) <= _STEADY_BYTES

    def _kept(self, tensor: TensorSpec, shape: tuple[int, ...]) -> DeviceArray:
        """The memory that is kept for an input or output."""
        workspace = self._workspaces.setdefault(tensor.name, Workspace(self._runtime.cuda, growth=2))
        memory = workspace.reserve(_nbytes(tensor, shape))
        return DeviceArray(self._runtime.cuda, memory.ptr, shape, tensor.dtype, memory)

    def _check_in_place(self, feeds: Arrays, buffers: Arrays) -> None:
        for output, source in self._in_place.items():
            fed, buffer = feeds[source], buffers.get(output)
            if not (isinstance(fed, DeviceArray) and isinstance(buffer, DeviceArray) and fed.ptr == buffer.ptr):
                raise BackendError(
                    f"graph '{self.spec.name}' updates '{source}' in place: it has to be buffer '{output}' too. "
                    "Make one with the session's memory and pass it as both."
                )

    def _find_in_place(self) -> dict[str, str]:
        """Output -> the input whose memory it has to share."""
        if not hasattr(self._engine, "get_aliased_input_tensor"):  # came with in-place updates themselves
            return {}
        found = {tensor.name: self._engine.get_aliased_input_tensor(tensor.name) for tensor in self.spec.outputs}
        return {output: source for output, source in found.items() if source}

    def _check_engine(self) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        built = {
            name: f"{engine.get_tensor_mode(name).name} {engine.get_tensor_dtype(name).name} "
            f"on {engine.get_tensor_location(name).name}"
            for name in names
        }
        expected = {
            tensor.name: f"{mode} {_DTYPES[tensor.dtype]} on DEVICE"
            for mode, tensors in (("INPUT", self.spec.inputs), ("OUTPUT", self.spec.outputs))
            for tensor in tensors
        }
        for name in dict.fromkeys((*expected, *built)):
            if built.get(name) != expected.get(name):
                found, wanted = (of.get(name, "nothing") for of in (built, expected))
                raise BackendError(
                    f"the engine of graph '{self.spec.name}' has {found} as '{name}', expected {wanted}. Build it again."
                )


def _nbytes(tensor: TensorSpec, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtypes.itemsize(tensor.dtype)

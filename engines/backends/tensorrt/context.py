"""What runs engines: the library on a GPU, and execution contexts with their shapes, addresses and CUDA graphs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from mmap import mmap
from typing import Any

from foveate.engines.backends.cuda import Cuda, Workspace
from foveate.engines.backends.tensorrt.kernels import KernelCache
from foveate.engines.backends.tensorrt.library import make_logger
from foveate.engines.errors import BackendError, MachineError

ALIGNMENT = 256
"""What the library asks of the addresses of inputs and outputs, in bytes."""
_KEPT_GRAPHS = 4
"""Answers that are decoded in turn have a CUDA graph for the KV cache of each."""

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]


class TensorRTRuntime:
    """What the sessions of a pipeline share: the library, the GPU, and scratch memory, as only one graph runs at a time.

    Args:
        trt: the library's module.
        title: its name in messages.
        cuda: the GPU.
        graphs: launch runs that repeat (decode steps) as CUDA graphs.

    Attributes:
        logger: the library's logger; keeps the last errors.

    Raises:
        BackendError: the library can't start on this GPU.
    """

    def __init__(self, trt: Any, title: str, cuda: Cuda, graphs: bool = True) -> None:
        self.trt = trt
        self.cuda = cuda
        self.graphs = graphs
        self.scratch = Workspace(cuda)
        self._title = f"{title} {trt.__version__}"
        self.logger = make_logger(trt)
        cuda.activate()
        try:
            self._runtime = trt.Runtime(self.logger)
        except TypeError as error:  # of pybind11, where the library made nothing
            raise self.failure("can't start", "Update the NVIDIA driver.") from error

    def load(self, engine: bytes | mmap, name: str) -> Any:
        """The library's engine.

        Args:
            engine: what a build wrote.
            name: where it comes from, for the message.

        Raises:
            BackendError: the engine is for another GPU or version, damaged, or too large for the GPU.
        """
        with self.cuda.lock:
            self.cuda.activate()
            loaded = self._runtime.deserialize_cuda_engine(engine)
            if loaded is None:
                raise self.failure(f"can't load {name}", "Build it again.")
            return loaded

    def failure(self, fact: str, remedy: str) -> BackendError:
        """An error with the last lines of the library's log."""
        lines = list(dict.fromkeys(self.logger.errors))
        self.logger.errors.clear()
        return BackendError(f"{self._title} {fact}: {'; '.join(lines) or 'it gives no reason'}. {remedy}")


class Context:
    """An engine with one of its profiles: sets what changed since the last run and enqueues the next one.

    A run whose shapes and addresses are those of an earlier one is launched as a CUDA graph. It is captured after the second
    such run, once the library has done what it does at first sight of a shape. Copies of host feeds stay outside of it: they go
    to addresses that do not change. When the shapes change the graphs go, because the context lays its own memory out anew.
    A library that captures by itself (TensorRT-RTX) is left to it.

    Args:
        runtime: what the sessions share.
        engine: the library's engine.
        profile: index of the engine's profile.
        graph: the graph's name, for messages.
        outputs: names of the engine's outputs.
        kernels: where a library that compiles kernels at run time keeps them.

    Raises:
        BackendError: there is not enough memory on the GPU.
    """

    def __init__(
        self,
        runtime: TensorRTRuntime,
        engine: Any,
        profile: int,
        graph: str,
        outputs: Sequence[str],
        kernels: KernelCache | None = None,
    ) -> None:
        self._runtime = runtime
        self._where = f"graph '{graph}' (profile {profile})"
        self._outputs = outputs
        self._captures = runtime.graphs and not hasattr(runtime.trt, "CudaGraphStrategy")
        self._inner = self._create(engine, kernels)
        self._check(self._inner.set_optimization_profile_async(profile, runtime.cuda.stream), "can't choose the profile of")
        self._shapes: dict[str, Shape] = {}
        self._output_shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._scratch_bytes = 0
        self._scratch_ptr = 0
        self._graphs: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def set_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Takes the shapes of all inputs; gives those of the outputs.

        Raises:
            BackendError: the library refuses a shape.
        """
        changed = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        if not changed:
            return self._output_shapes
        self._forget()
        for name, shape in changed.items():
            self._check(self._inner.set_input_shape(name, shape), f"refuses shape {list(shape)} of '{name}' in")
        self._output_shapes = {name: tuple(self._inner.get_tensor_shape(name)) for name in self._outputs}
        self._scratch_bytes = self._inner.update_device_memory_size_for_shapes()
        self._shapes = dict(shapes)
        return self._output_shapes

    def run(self, addresses: Mapping[str, int]) -> None:
        """Enqueues a run on inputs and outputs at these addresses, in the shapes set before.

        Raises:
            BackendError: the library can't run it, or the GPU has no memory for it.
        """
        scratch = self._runtime.scratch.reserve(self._scratch_bytes)
        key = (scratch.ptr, *addresses.values())
        if self._graphs.get(key) is not None:
            self._graphs.move_to_end(key)
            self._runtime.cuda.launch(self._graphs[key])
            return
        if scratch.ptr != self._scratch_ptr:
            self._inner.set_device_memory(scratch.ptr, scratch.nbytes)
            self._scratch_ptr = scratch.ptr
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._check(self._inner.set_tensor_address(name, address), f"refuses the address of '{name}' in")
                self._addresses[name] = address
        self._enqueue()
        if self._captures:
            self._remember(key)

    def close(self) -> None:
        """Frees the context; nothing may be enqueued any more."""
        self._forget()
        self._inner = None

    def _create(self, engine: Any, kernels: KernelCache | None) -> Any:
        runtime, trt = self._runtime, self._runtime.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(trt, "CudaGraphStrategy"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            strategies = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if runtime.graphs else strategies.DISABLED
            if kernels is not None:
                kernels.attach(config)
            inner = engine.create_execution_context(config)
        else:
            inner = engine.create_execution_context(strategy)
        self._check(inner is not None, "can't prepare")
        return inner

    def _enqueue(self) -> None:
        self._check(self._inner.execute_async_v3(self._runtime.cuda.stream), "failed in")

    def _remember(self, key: tuple[int, ...]) -> None:
        """Notes what was run, and captures it the second time."""
        if key not in self._graphs:
            self._graphs[key] = None
            if len(self._graphs) > _KEPT_GRAPHS:
                self._drop(self._graphs.popitem(last=False)[1])
            return
        try:
            self._graphs[key] = self._runtime.cuda.capture(self._enqueue)
        except (BackendError, MachineError) as error:
            _log.info("no CUDA graph of %s: %s", self._where, error)
            self._captures = False

    def _forget(self) -> None:
        """Makes the next run set everything anew."""
        for graph in self._graphs.values():
            self._drop(graph)
        self._graphs.clear()
        self._shapes, self._addresses, self._scratch_ptr = {}, {}, 0

    def _drop(self, graph: Any) -> None:
        if graph is not None:
            self._runtime.cuda.destroy(graph)

    def _check(self, done: bool, fact: str) -> None:
        if not done:
            raise self._runtime.failure(f"{fact} {self._where}", "Build the engine again.")

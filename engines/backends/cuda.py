"""One NVIDIA GPU: its memory, copies, and CUDA graphs, on one stream.

Everything is enqueued in order on the stream, memory is given back in that order too, and only reading on the host waits.
Threads may share it: each call has the stream to itself, and `Cuda.lock` is for what needs it for several calls.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from foveate.engines.errors import BackendError, MachineError, OptionError
from foveate.engines.system.packages import needed_package

_PINNED_BYTES = 4 * 1024 * 1024
"""What is read up to this size (logits, scores) comes through page-locked memory, which is several times as fast."""
_KEEP_ALL = 2**64 - 1
_WITHOUT = "use the backend 'onnxruntime', which needs none"


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _alone(method: Callable[Concatenate[Cuda, _P], _T]) -> Callable[Concatenate[Cuda, _P], _T]:
    """A method that has the stream to itself."""

    @wraps(method)
    def locked(self: Cuda, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        with self.lock:
            return method(self, *arguments, **named)

    return locked


@dataclass(frozen=True)
class DeviceInfo:
    """A GPU. `target` is its compute capability as `sm89`, `driver` the newest CUDA that its driver knows, as `13.0`."""

    name: str
    target: str
    total_bytes: int
    free_bytes: int
    driver: str


class Cuda:
    """A GPU and a stream on it.

    Args:
        device: its index.
        bindings: the package `cuda.bindings`, or one with the same functions; None imports it.

    Attributes:
        lock: held by the one thread that may use the stream. While it captures a graph, whatever another thread enqueued would
            become part of the graph. It may be taken again by the thread that has it: memory is freed at any moment.

    Raises:
        BackendError: there is no driver or no GPU.
        OptionError: there is no such GPU.
        MissingPackageError: cuda-bindings is not installed.
    """

    def __init__(self, device: int = 0, bindings: Any = None) -> None:
        bindings = bindings or _library()
        self._runtime = bindings.runtime
        self.lock = threading.RLock()
        self._capturing = False
        self._postponed: list[Callable[[], object]] = []
        self._pinned: np.ndarray | None = None
        self.device = device
        self._check_device()
        self.activate()
        handle = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        self.stream = int(handle)
        """The stream's address, as libraries take it."""
        on_death(self, self._runtime.cudaStreamDestroy, handle)
        # Without this the pool hands memory back to the driver at each wait, and every decode step asks for it anew.
        pool = self._call("cudaDeviceGetDefaultMemPool", device)
        threshold = self._runtime.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        self._call("cudaMemPoolSetAttribute", pool, threshold, bindings.driver.cuuint64_t(_KEEP_ALL))

    def activate(self) -> None:
        """Makes this GPU that of the calling thread: for libraries that take the current one."""
        self._call("cudaSetDevice", self.device)

    def info(self) -> DeviceInfo:
        """What the GPU is, and how much of its memory no process holds; a process keeps what its arrays gave back."""
        self.activate()
        properties = self._call("cudaGetDeviceProperties", self.device)
        free_bytes, total_bytes = self._call("cudaMemGetInfo")
        name = properties.name.split(b"\0")[0].decode()
        driver = _version(self._call("cudaDriverGetVersion"))
        return DeviceInfo(name, f"sm{properties.major}{properties.minor}", total_bytes, free_bytes, driver)

    @_alone
    def malloc(self, nbytes: int) -> int:
        """Address of new device memory, a multiple of 256 bytes; no two are equal, even of 0 bytes.

        Raises:
            MachineError: the GPU is out of memory.
        """
        error, address = self._runtime.cudaMallocAsync(max(nbytes, 1), self.stream)
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            self._runtime.cudaGetLastError()
            info = self.info()
            raise MachineError(
                f"GPU {self.device} ({info.name}) is out of memory: {_mib(nbytes)} wanted, {_mib(info.free_bytes)} of "
                f"{_mib(info.total_bytes)} free. "
                "Keep fewer visual tokens, lower the batch or the KV capacity, or build engines for fewer tokens.",
                options=("keep",),
            )
        self._check("cudaMallocAsync", error)
        return int(address)

    def free(self, address: int) -> None:
        """Gives memory of `malloc` back, once everything enqueued so far is done with it."""
        # A captured graph would free it in each launch.
        self._after_capture(lambda: self._call("cudaFreeAsync", address, self.stream))

    @_alone
    def to_device(self, address: int, array: np.ndarray) -> None:
        """Enqueues a copy of a host array; it may be changed right after the call."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        # The driver takes pageable memory over before the call returns, so that no page-locked buffer is to be waited for.
        array = np.ascontiguousarray(array)
        if array.nbytes:
            self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    @_alone
    def to_host(self, array: np.ndarray, address: int) -> None:
        """Waits for everything enqueued and fills a contiguous host array."""
        if not array.nbytes:
            return
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        pinned = self._pinned_buffer(array.nbytes)
        target = array.ctypes.data if pinned is None else pinned.ctypes.data
        self._call("cudaMemcpyAsync", target, address, array.nbytes, kind, self.stream)
        self.synchronize()
        if pinned is not None:
            array.reshape(-1).view(np.uint8)[:] = pinned

    @_alone
    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueues a copy on the device."""
        if nbytes:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            self._call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    @_alone
    def fill_zero(self, address: int, nbytes: int) -> None:
        """Enqueues the zeroing of device memory."""
        if nbytes:
            self._call("cudaMemsetAsync", address, 0, nbytes, self.stream)

    @_alone
    def synchronize(self) -> None:
        """Waits for everything enqueued."""
        self._call("cudaStreamSynchronize", self.stream)

    @_alone
    def wait_for(self, stream: int) -> None:
        """Waits for everything enqueued on another stream: for arrays that another library is still writing."""
        self._call("cudaStreamSynchronize", stream)

    @_alone
    def capture(self, enqueue: Callable[[], object]) -> Any:
        """A graph of what `enqueue` puts on the stream; nothing of it runs now.

        Raises:
            BackendError: something in it can't be captured.
        """
        runtime = self._runtime
        self._call("cudaStreamBeginCapture", self.stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        self._capturing = True
        try:
            enqueue()
        finally:
            self._capturing = False
            error, graph = runtime.cudaStreamEndCapture(self.stream)
            for action in self._postponed:
                action()
            self._postponed.clear()
        self._check("cudaStreamEndCapture", error)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    @_alone
    def launch(self, graph: Any) -> None:
        """Enqueues a captured graph."""
        self._call("cudaGraphLaunch", graph, self.stream)

    @_alone
    def destroy(self, graph: Any) -> None:
        """Frees a captured graph, once its last launch is done."""
        self._call("cudaGraphExecDestroy", graph)

    def drop_when_done(self, kept: object) -> None:
        """Waits for everything enqueued before it lets go of what that works on: memory of another library."""

        def wait() -> object:
            self.synchronize()
            return kept

        self._after_capture(wait)

    @_alone
    def _after_capture(self, action: Callable[[], object]) -> None:
        if self._capturing:
            self._postponed.append(action)
        else:
            action()

    def _pinned_buffer(self, nbytes: int) -> np.ndarray | None:
        if nbytes > _PINNED_BYTES:
            return None
        if self._pinned is None:
            address = self._call("cudaHostAlloc", _PINNED_BYTES, self._runtime.cudaHostAllocDefault)
            self._pinned = _host_view(int(address), _PINNED_BYTES)
            on_death(self, self._runtime.cudaFreeHost, address)
        return self._pinned[:nbytes]

    def _check_device(self) -> None:
        error, count = self._runtime.cudaGetDeviceCount()
        known = self._runtime.cudaError_t
        if error == known.cudaErrorInsufficientDriver:
            driver = self._call("cudaDriverGetVersion")
            if not driver:
                raise BackendError(f"no NVIDIA driver is loaded. Install it, or {_WITHOUT}.", options=("backend",))
            raise BackendError(
                f"the NVIDIA driver knows CUDA up to {_version(driver)}, the package 'cuda-bindings' needs "
                f"{_version(self._call('cudaRuntimeGetVersion'))}. Update the driver."
            )
        if error == known.cudaErrorNoDevice or (error == known.cudaSuccess and not count):
            raise BackendError(f"there is no NVIDIA GPU. Find one, or {_WITHOUT}.", options=("backend",))
        self._check("cudaGetDeviceCount", error)
        if not 0 <= self.device < count:
            raise OptionError(
                f"there is no GPU {self.device}, expected 0 to {count - 1}. Choose one of those.", options=("device",)
            )

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        self._check(function, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, function: str, error: Any) -> None:
        if error == self._runtime.cudaError_t.cudaSuccess:
            return
        self._runtime.cudaGetLastError()  # an error that is not fatal is remembered until it is read
        name = self._runtime.cudaGetErrorName(error)[1].decode()
        text = self._runtime.cudaGetErrorString(error)[1].decode()
        raise BackendError(f"{function} failed on GPU {self.device}: {name}, {text}. Look at the GPU with: nvidia-smi")


class Allocation:
    """Device memory that is freed when the last array on it is gone."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self.nbytes = nbytes
        self.ptr = cuda.malloc(nbytes)
        on_death(self, cuda.free, self.ptr)


class Workspace:
    """Device memory that is kept between runs and grows when one needs more.

    Args:
        cuda: the GPU.
        growth: how many times its size it grows to at least, so that it does not in each run.
    """

    def __init__(self, cuda: Cuda, growth: int = 1) -> None:
        self._cuda = cuda
        self._growth = growth
        self._memory: Allocation | None = None

    def reserve(self, nbytes: int) -> Allocation:
        """At least `nbytes`; what earlier calls gave is not to be used any more."""
        if self._memory is None or self._memory.nbytes < nbytes:
            grown = 0 if self._memory is None else self._growth * self._memory.nbytes
            self._memory = None  # freed first: there may be no room for both
            self._memory = Allocation(self._cuda, max(nbytes, grown))
        return self._memory


def on_death(owner: object, function: Callable[..., object], *arguments: Any) -> None:
    """Calls a function when `owner` is gone; not at the end of the process, which gives everything back anyway."""
    weakref.finalize(owner, function, *arguments).atexit = False


def _library() -> Any:
    with needed_package("it works on an NVIDIA GPU", "gpu", "cuda-bindings", alone=True):
        for module in ("cuda.bindings.driver", "cuda.bindings.runtime"):
            import_module(module)
        return import_module("cuda.bindings")


def _version(number: int) -> str:
    """`13050` as `13.5`."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB" if nbytes >= 2**20 else f"{nbytes} bytes"


def _host_view(address: int, nbytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

"""A GPU out of host memory; its addresses are real.

The stream is lazy: what is enqueued happens at the next wait, so that whatever reads too early reads garbage. Memory that is
new or was given back is filled with a pattern.
"""

# The names are those of the libraries.
# ruff: noqa: N801, N802, N815

from __future__ import annotations

import ctypes
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from foveate.engines.backends.cuda import Cuda

STREAM = 77
_NEW, _FREED = 0xC5, 0xD5


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaMemPoolAttr(IntEnum):
    cudaMemPoolAttrReleaseThreshold = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


_OK = cudaError_t.cudaSuccess
_INVALID = cudaError_t.cudaErrorInvalidValue


class FakeRuntime:
    """The part of `cuda.bindings.runtime` that foveate uses.

    Attributes:
        calls: how often each function was called.
        copied: bytes by `cudaMemcpyKind`.
        used_bytes: memory in use.
        total_bytes: more can't be had.
    """

    cudaError_t, cudaMemcpyKind = cudaError_t, cudaMemcpyKind
    cudaMemPoolAttr, cudaStreamCaptureMode = cudaMemPoolAttr, cudaStreamCaptureMode
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self, total_bytes: int = 2**30, devices: int = 1, driver: int = 13000) -> None:
        self.total_bytes, self.devices, self.driver = total_bytes, devices, driver
        self.used_bytes = 0
        self.calls: Counter[str] = Counter()
        self.copied: Counter[cudaMemcpyKind] = Counter()
        self._blocks: dict[int, np.ndarray] = {}
        self._pool: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        self._pinned: dict[int, np.ndarray] = {}
        self._queue: list[Callable[[], object]] = []
        self._captured: list[Callable[[], object]] | None = None
        self._broken = False

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("cuda") and callable(value) and not isinstance(value, type):
            self.calls[name] += 1
        return value

    @property
    def capturing(self) -> bool:
        return self._captured is not None

    def enqueue(self, operation: Callable[[], object]) -> None:
        """Puts work on the stream, or into the graph that is being captured.

        An operation may have a function `is_valid` that says whether a graph may still launch it.
        """
        (self._queue if self._captured is None else self._captured).append(operation)

    def is_allocated(self, address: int, nbytes: int) -> bool:
        """Whether the bytes lie in one piece of device memory."""
        return any(start <= address and address + nbytes <= start + block.nbytes for start, block in self._blocks.items())

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if self.driver < 13000:
            return cudaError_t.cudaErrorInsufficientDriver, None
        return (_OK, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (_OK,)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return _OK, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return _OK, 13050

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return _OK, SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=9)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return _OK, self.total_bytes - self.used_bytes, self.total_bytes

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (_OK,)

    def cudaGetErrorName(self, error: cudaError_t) -> tuple[Any, ...]:
        return _OK, error.name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        return _OK, f"error {error.value}".encode()

    def cudaDeviceGetDefaultMemPool(self, device: int) -> tuple[Any, ...]:
        return _OK, object()

    def cudaMemPoolSetAttribute(self, memPool: object, attr: cudaMemPoolAttr, value: int) -> tuple[Any, ...]:
        return (_OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return _OK, STREAM

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return (_OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if self.capturing:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._work()
        return (cudaError_t.cudaErrorIllegalAddress,) if self._broken else (_OK,)

    def cudaMallocAsync(self, size: int, hStream: int) -> tuple[Any, ...]:
        if self.used_bytes + size > self.total_bytes:
            return cudaError_t.cudaErrorMemoryAllocation, None
        block = self._pool[size].pop() if self._pool[size] else _aligned(size)
        self._blocks[block.ctypes.data] = block
        self.used_bytes += size
        return _OK, block.ctypes.data

    def cudaFreeAsync(self, devPtr: int, hStream: int) -> tuple[Any, ...]:
        block = self._blocks.pop(devPtr)
        self.used_bytes -= block.nbytes
        self.enqueue(lambda: block.fill(_FREED))
        self._pool[block.nbytes].append(block)
        return (_OK,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        block = _aligned(size)
        self._pinned[block.ctypes.data] = block
        return _OK, block.ctypes.data

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        del self._pinned[ptr]
        return (_OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> tuple[Any, ...]:
        from_host, to_host = kind == cudaMemcpyKind.cudaMemcpyHostToDevice, kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        on_device = [address for address, host in ((dst, to_host), (src, from_host)) if not host]
        if not count or not all(self.is_allocated(address, count) for address in on_device):
            return (_INVALID,)
        if self.capturing and (from_host or to_host):
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.copied[kind] += count
        if from_host:  # pageable: taken over at once
            taken = host_view(src, (count,), "uint8").copy()
            self.enqueue(lambda: ctypes.memmove(dst, taken.ctypes.data, count))
        else:
            self.enqueue(lambda: ctypes.memmove(dst, src, count))
        if to_host and dst not in self._pinned:
            self._work()
        return (_OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        if not self.is_allocated(devPtr, count):
            return (_INVALID,)
        self.enqueue(lambda: ctypes.memset(devPtr, value, count))
        return (_OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: cudaStreamCaptureMode) -> tuple[Any, ...]:
        self._captured = []
        return (_OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        captured, self._captured = self._captured, None
        return _OK, captured

    def cudaGraphInstantiate(self, graph: list[Callable[[], object]], flags: int) -> tuple[Any, ...]:
        return _OK, list(graph)

    def cudaGraphDestroy(self, graph: list[Callable[[], object]]) -> tuple[Any, ...]:
        return (_OK,)

    def cudaGraphLaunch(self, graphExec: list[Callable[[], object]], stream: int) -> tuple[Any, ...]:
        if not graphExec or not all(getattr(operation, "is_valid", lambda: True)() for operation in graphExec):
            return (_INVALID,)
        self._queue += graphExec
        return (_OK,)

    def cudaGraphExecDestroy(self, graphExec: list[Callable[[], object]]) -> tuple[Any, ...]:
        graphExec.clear()
        return (_OK,)

    def _work(self) -> None:
        queue, self._queue = self._queue, []
        for operation in queue:
            try:
                operation()
            except Exception:
                self._broken = True


class FakeCuda(Cuda):
    """`Cuda` on a `FakeRuntime`, which is its attribute `fake`."""

    def __init__(self, **limits: int) -> None:
        self.fake = FakeRuntime(**limits)
        super().__init__(0, SimpleNamespace(runtime=self.fake, driver=SimpleNamespace(cuuint64_t=int)))

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Counts calls, and copied bytes as `host_to_device`, `device_to_host` and `device_to_device`."""
        calls, copied = Counter(self.fake.calls), Counter(self.fake.copied)
        counts: Counter[str] = Counter()
        yield counts
        counts.update(self.fake.calls - calls)
        names = {1: "host_to_device", 2: "device_to_host", 3: "device_to_device"}
        counts.update({names[kind]: nbytes for kind, nbytes in (self.fake.copied - copied).items()})


def host_view(address: int, shape: Sequence[int], dtype: str) -> np.ndarray:
    """The memory at an address as an array."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)


def _aligned(size: int) -> np.ndarray:
    block = np.full(size + 256, _NEW, np.uint8)
    start = -block.ctypes.data % 256
    return block[start : start + size]

"""Arrays on a GPU: made here, or borrowed from another library without a copy."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from foveate.engines.backends.cuda import Allocation, Cuda, on_death
from foveate.engines.backends.memory import Array, Memory
from foveate.engines.errors import BackendError
from foveate.engines.format.dtypes import NAMES, host_dtype, itemsize
from foveate.engines.system.packages import needed_package

_DLPACK_CUDA = 2


@dataclass(frozen=True)
class DeviceDType:
    """The dtype of a device array, by numpy's name or `bfloat16`: no library is loaded for it."""

    name: str

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return itemsize(self.name)


class DeviceArray:
    """A contiguous array in device memory, or a view of one; see `foveate.engines.backends.memory.Array`.

    Libraries that read `__cuda_array_interface__` (CuPy, Numba, PyTorch) take it without a copy, unless it is bfloat16.

    Attributes:
        ptr: its address.
        owner: keeps the memory alive.
    """

    def __init__(self, cuda: Cuda, ptr: int, shape: Sequence[int], dtype: str, owner: object) -> None:
        self.cuda = cuda
        self.ptr = ptr
        self.shape = tuple(int(size) for size in shape)
        self.dtype = DeviceDType(dtype)
        self.owner = owner
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def empty(cls, cuda: Cuda, shape: Sequence[int], dtype: str) -> DeviceArray:
        """A new array with anything in it.

        Raises:
            BackendError: the GPU is out of memory.
        """
        memory = Allocation(cuda, math.prod(shape) * itemsize(dtype))
        return cls(cuda, memory.ptr, shape, dtype, memory)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no length")
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> DeviceArray:
        """A view of a row, or of consecutive rows, along the first axis."""
        rows = range(len(self))[index]
        shape = self.shape[1:] if isinstance(rows, int) else (len(rows), *self.shape[1:])
        if isinstance(rows, range) and rows.step != 1:
            raise IndexError("a view of a device array takes consecutive rows only")
        first = rows if isinstance(rows, int) else rows.start
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.cuda, self.ptr + first * row_bytes, shape, self.dtype.name, self.owner)

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray:
        """A copy on the host; waits for everything enqueued."""
        if copy is False:
            raise ValueError("a device array comes to the host by a copy only")
        host = np.empty(self.shape, host_dtype(self.dtype.name))
        self.cuda.to_host(host, self.ptr)
        return host if dtype is None else host.astype(dtype, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.name == "bfloat16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16")
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": np.dtype(self.dtype.name).str,
            "data": (self.ptr if self.nbytes else 0, False),
            "strides": None,
            "stream": self.cuda.stream,
        }

    def __repr__(self) -> str:
        return f"DeviceArray({list(self.shape)}, {self.dtype.name}, GPU {self.cuda.device})"


class CudaMemory:
    """Arrays on a GPU; see `foveate.engines.backends.memory.Memory`."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        return DeviceArray.empty(self.cuda, shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.zero(array)
        return array

    def zero(self, array: Array) -> None:
        """See `Memory`."""
        assert isinstance(array, DeviceArray)
        self.cuda.fill_zero(array.ptr, array.nbytes)

    def exchange_rows(self, array: Array, first: int, second: int, held: tuple[int, int]) -> None:
        """See `Memory`; whole rows, each of which lies in one piece."""
        assert isinstance(array, DeviceArray)
        aside = self.empty(array.shape[1:], array.dtype.name)
        fill(aside, array[second])
        if held[0]:
            fill(array[second], array[first])
        if held[1]:
            fill(array[first], aside)

    def shares(self, other: Memory) -> bool:
        """See `Memory`."""
        return isinstance(other, CudaMemory) and other.cuda is self.cuda

    def concatenate(self, arrays: Sequence[Array]) -> DeviceArray:
        """Joins arrays of one dtype, from the host too.

        Raises:
            BackendError: their dtypes or their shapes behind the first axis differ.
        """
        first = self.asarray(arrays[0])
        if len(arrays) == 1:
            return first
        for array in arrays:
            if (array.shape[1:], array.dtype.name) != (first.shape[1:], first.dtype.name):
                raise BackendError(
                    f"can't join {array.dtype.name} {list(array.shape)} to {first.dtype.name} {list(first.shape)}. "
                    "Give both the same dtype and row shape."
                )
        joined = self.empty((sum(map(len, arrays)), *first.shape[1:]), first.dtype.name)
        start = 0
        for array in arrays:
            fill(joined[start : start + len(array)], array)
            start += len(array)
        return joined

    def asarray(self, array: Array, dtype: str | None = None) -> DeviceArray:
        """Brings an array here, of the host or of another library; a device array of another dtype goes through the host."""
        array = adopt(array, self.cuda)
        dtype = dtype or array.dtype.name
        if isinstance(array, DeviceArray) and array.dtype.name == dtype:
            return array
        host = np.asarray(array, host_dtype(dtype))
        brought = self.empty(host.shape, dtype)
        self.cuda.to_device(brought.ptr, host)
        return brought

    def synchronize(self) -> None:
        """See `Memory`."""
        self.cuda.synchronize()


_memories: dict[int, CudaMemory] = {}
_opening = threading.Lock()


def gpu_memory(device: int = 0) -> CudaMemory:
    """The memory of a GPU, one for all sessions on it, in whichever threads: its stream orders the copies between them.

    Raises:
        BackendError: there is no driver or no GPU.
        OptionError: there is no such GPU.
        MissingPackageError: cuda-bindings is not installed.
    """
    with _opening:
        if device not in _memories:
            _memories[device] = CudaMemory(Cuda(device))
        return _memories[device]


def fill(target: DeviceArray, source: Array) -> None:
    """Enqueues a copy of an array of the same shape and dtype, from the host or the device."""
    if isinstance(source, DeviceArray):
        target.cuda.copy(target.ptr, source.ptr, source.nbytes)
    else:
        target.cuda.to_device(target.ptr, np.asarray(source))


class _Borrowed:
    """The owner of a view of another library's memory."""


def adopt(array: Any, cuda: Cuda) -> Array:
    """An array as sessions take it: ours and numpy's as they are, another library's on the GPU as a view of it."""
    return array if isinstance(array, (DeviceArray, np.ndarray)) else from_foreign(array, cuda)


def from_foreign(array: Any, cuda: Cuda) -> DeviceArray:
    """A view, without a copy, of an array that another library has on the GPU; the array is kept as long as the view.

    Args:
        array: has `__dlpack__` or `__cuda_array_interface__` (a tensor of PyTorch, CuPy, JAX).
        cuda: the GPU where it lies.

    Raises:
        BackendError: it lies elsewhere, is not contiguous or of an unknown dtype.
        MissingPackageError: cuda-core is not installed.
    """
    if hasattr(array, "__dlpack_device__"):
        view = _read_dlpack(array, cuda)
    elif hasattr(array, "__cuda_array_interface__"):
        view = _read_interface(array.__cuda_array_interface__, cuda)
    else:
        raise BackendError(
            f"a {type(array).__name__} is no GPU array, expected __dlpack__ or __cuda_array_interface__. Feed a numpy array."
        )
    if view.dtype not in NAMES:
        raise BackendError(f"the GPU array is of dtype {view.dtype}, expected {', '.join(sorted(NAMES))}. Cast it first.")
    if view.strides is not None and not _is_contiguous(view.shape, view.strides):
        raise BackendError(
            f"the GPU array {list(view.shape)} has strides {list(view.strides)}, expected a contiguous one. Copy it first."
        )
    owner = _Borrowed()
    on_death(owner, cuda.drop_when_done, (array, view.kept))
    return DeviceArray(cuda, view.ptr, view.shape, view.dtype, owner)


@dataclass(frozen=True)
class _View:
    """What another library says about an array; strides in elements, None where it is contiguous."""

    ptr: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    kept: object = None


def _read_dlpack(array: Any, cuda: Cuda) -> _View:
    kind, device = array.__dlpack_device__()
    if (int(kind), device) != (_DLPACK_CUDA, cuda.device):
        where = f"GPU {device}" if int(kind) == _DLPACK_CUDA else "the host or another kind of device"
        raise BackendError(f"the array lies on {where}, expected GPU {cuda.device}. Feed a numpy array, or move it there.")
    with needed_package("it reads arrays of other libraries", "gpu", "cuda-core", alone=True):
        utils = import_module("cuda.core.utils")
    view = utils.StridedMemoryView.from_dlpack(array, stream_ptr=cuda.stream)
    return _View(view.ptr, tuple(view.shape), view.strides, view.dtype.name, view)


def _read_interface(interface: dict[str, Any], cuda: Cuda) -> _View:
    """`__cuda_array_interface__`, see https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None:
        strides = tuple(stride // dtype.itemsize for stride in strides)
    if interface.get("stream") not in (None, cuda.stream):
        cuda.wait_for(interface["stream"])
    return _View(interface["data"][0], tuple(interface["shape"]), strides, dtype.name)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether rows follow each other without a gap; the stride of an axis of size 1 means nothing."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return 0 in shape
        step *= size
    return True

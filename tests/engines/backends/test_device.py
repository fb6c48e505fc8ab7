"""Arrays on the GPU: views, copies, and those of other libraries."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import Array, BackendError, GraphSpec, Memory, MissingPackageError, TensorSpec, check_buffers, check_feeds
from foveate.engines.backends.device import CudaMemory, DeviceArray, from_foreign
from tests.engines.fake_cuda import STREAM, FakeCuda


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def memory(cuda: FakeCuda) -> CudaMemory:
    return CudaMemory(cuda)


def rows(count: int = 5, dtype: str = "float32") -> np.ndarray:
    return np.arange(count * 3).reshape(count, 3).astype(dtype)


class TestArray:
    def test_attributes(self, memory: CudaMemory) -> None:
        array: Array = memory.empty((2, 3, 4), "bfloat16")
        assert (array.shape, array.dtype.name, array.ndim, array.nbytes, len(array)) == ((2, 3, 4), "bfloat16", 3, 48, 2)
        assert repr(array) == "DeviceArray([2, 3, 4], bfloat16, GPU 0)"

    @pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float32"])
    def test_to_the_device_and_back(self, dtype: str, memory: CudaMemory) -> None:
        back = np.asarray(memory.asarray(rows(dtype=dtype)))
        assert back.dtype == dtype
        assert np.array_equal(back, rows(dtype=dtype))

    def test_bfloat16_comes_back_as_that_of_ml_dtypes_or_as_asked(self, memory: CudaMemory) -> None:
        array = memory.asarray(rows(), "bfloat16")
        assert np.asarray(array).dtype == ml_dtypes.bfloat16
        assert np.asarray(array, np.float32).tolist() == rows().tolist()

    def test_a_scalar(self, memory: CudaMemory) -> None:
        scalar = memory.asarray(np.array(7, np.int32))
        assert (scalar.shape, scalar.nbytes, int(np.asarray(scalar))) == ((), 4, 7)
        with pytest.raises(TypeError, match="no length"):
            len(scalar)

    def test_it_comes_by_copy_only(self, memory: CudaMemory) -> None:
        with pytest.raises(ValueError, match="by a copy only"):
            np.asarray(memory.asarray(rows()), copy=False)

    @given(st.integers(0, 6), st.slices(6))
    def test_views_are_those_of_numpy(self, count: int, chosen: slice) -> None:
        memory = CudaMemory(FakeCuda())
        host = rows(count)
        array = memory.asarray(host)
        if range(count)[chosen].step != 1:
            with pytest.raises(IndexError, match="consecutive rows only"):
                array[chosen]
            return
        view = array[chosen]
        assert view.shape == host[chosen].shape
        assert np.array_equal(np.asarray(view), host[chosen])

    @pytest.mark.parametrize("index", [0, 4, -1])
    def test_a_row(self, index: int, memory: CudaMemory) -> None:
        assert np.asarray(memory.asarray(rows())[index]).tolist() == rows()[index].tolist()

    def test_a_row_that_is_not_there(self, memory: CudaMemory) -> None:
        with pytest.raises(IndexError):
            memory.asarray(rows())[5]

    def test_a_view_is_no_copy(self, memory: CudaMemory) -> None:
        array = memory.asarray(rows())
        memory.cuda.fill_zero(array[1:3].ptr, array[1:3].nbytes)
        assert np.asarray(array)[:, 0].tolist() == [0, 0, 0, 9, 12]

    def test_memory_lives_as_long_as_its_last_view(self, cuda: FakeCuda, memory: CudaMemory) -> None:
        view = memory.asarray(rows())[1:][1:]
        gc.collect()
        assert cuda.fake.used_bytes == 60
        assert np.asarray(view)[0].tolist() == [6, 7, 8]
        del view
        gc.collect()
        assert cuda.fake.used_bytes == 0

    def test_interface_for_other_libraries(self, memory: CudaMemory) -> None:
        array = memory.asarray(rows(dtype="float16"))
        assert array.__cuda_array_interface__ == {
            "version": 3,
            "shape": (5, 3),
            "typestr": "<f2",
            "data": (array.ptr, False),
            "strides": None,
            "stream": STREAM,
        }
        assert array[5:].__cuda_array_interface__["data"] == (0, False)
        assert not hasattr(memory.empty((1,), "bfloat16"), "__cuda_array_interface__")


class TestMemory:
    def test_zeros(self, memory: CudaMemory) -> None:
        some: Memory = memory
        assert not np.asarray(some.zeros((3, 3), "float32")).any()
        assert some.zeros((0, 3), "float32").shape == (0, 3)

    def test_zero_writes_into_a_view(self, memory: CudaMemory) -> None:
        some = memory.asarray(rows())
        memory.zero(some[1:2])
        expected = rows()
        expected[1] = 0
        np.testing.assert_array_equal(np.asarray(some), expected)

    def test_what_is_here_is_passed_on(self, memory: CudaMemory) -> None:
        array = memory.asarray(rows())
        assert memory.asarray(array) is array
        assert memory.asarray(array, "float32") is array
        assert memory.concatenate([array]) is array

    def test_another_dtype(self, memory: CudaMemory) -> None:
        half = memory.asarray(memory.asarray(rows()), "float16")
        assert half.dtype.name == "float16"
        assert np.asarray(half).tolist() == rows().tolist()

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
    def test_concatenate(self, counts: list[int], data: st.DataObject) -> None:
        memory = CudaMemory(FakeCuda())
        hosts = [rows(count) + index for index, count in enumerate(counts)]
        joined = memory.concatenate([memory.asarray(host) if data.draw(st.booleans()) else host for host in hosts])
        assert isinstance(joined, DeviceArray)
        assert np.array_equal(np.asarray(joined), np.concatenate(hosts))

    def test_nothing_goes_through_the_host(self, cuda: FakeCuda, memory: CudaMemory) -> None:
        arrays = [memory.asarray(rows()), memory.asarray(rows())]
        with cuda.counted() as counts:
            memory.concatenate(arrays)
        assert (counts["device_to_device"], counts["device_to_host"], counts["host_to_device"]) == (120, 0, 0)

    @pytest.mark.parametrize("other", [rows(dtype="float16"), np.zeros((2, 4), np.float32)], ids=["dtype", "shape"])
    def test_arrays_that_do_not_fit(self, other: np.ndarray, memory: CudaMemory) -> None:
        with pytest.raises(BackendError, match=r"can't join float\d+ \[\d, \d\] to float32 \[5, 3\]\. Give"):
            memory.concatenate([memory.asarray(rows()), other])

    def test_specs_are_held_against_device_arrays(self, memory: CudaMemory) -> None:
        tensor = TensorSpec("x", "bfloat16", ("n", 3))
        spec = GraphSpec("g", "g.onnx", (tensor,), (tensor,))
        array = memory.empty((5, 3), "bfloat16")
        assert check_feeds({"x": array}, spec) == {"n": 5}
        check_buffers({"x": array}, spec, {"n": 5})
        with pytest.raises(BackendError, match="got float16, expected bfloat16"):
            check_feeds({"x": memory.empty((5, 3), "float16")}, spec)
        with pytest.raises(BackendError, match=r"got shape \[5, 3\], expected \[4, 3\]"):
            check_buffers({"x": array}, spec, {"n": 4})


class Interface:
    """Another library's array, as `__cuda_array_interface__` shows it."""

    def __init__(self, array: DeviceArray, dtype: str = "<f4", **changes: Any) -> None:
        self.array = array
        interface = {"version": 3, "shape": array.shape, "typestr": dtype, "data": (array.ptr, False), "stream": None}
        self.__cuda_array_interface__ = interface | changes


class Tensor:
    """Another library's array, as DLPack shows it."""

    def __init__(self, array: DeviceArray, strides: Sequence[int] | None = None, device: tuple[int, int] = (2, 0)) -> None:
        self.array, self.strides, self.device = array, strides, device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, **_: Any) -> object:
        """numpy's capsule of an array of that shape, with the device's address in it."""
        self.streams.append(stream)
        like = np.empty(self.array.shape, self.array.dtype.name if self.array.dtype.name != "bfloat16" else "float16")
        if self.strides is not None:
            like = np.lib.stride_tricks.as_strided(like, strides=[stride * like.itemsize for stride in self.strides])
        capsule = like.__dlpack__()
        ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
        ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        start = ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor")
        # DLTensor: data, device type and index, ndim, type code, bits and lanes.
        ctypes.c_void_p.from_address(start).value = self.array.ptr
        ctypes.c_int32.from_address(start + 8).value = self.device[0]
        if self.array.dtype.name == "bfloat16":
            ctypes.c_uint8.from_address(start + 20).value = 4
        return capsule


class TestForeign:
    @pytest.fixture
    def array(self, memory: CudaMemory) -> DeviceArray:
        return memory.asarray(rows())

    def test_interface(self, array: DeviceArray, cuda: FakeCuda) -> None:
        with cuda.counted() as counts:
            view = from_foreign(Interface(array), cuda)
        assert (view.ptr, view.shape, view.dtype.name) == (array.ptr, (5, 3), "float32")
        assert not counts

    def test_interface_waits_for_its_stream(self, array: DeviceArray, cuda: FakeCuda) -> None:
        with cuda.counted() as counts:
            views = [from_foreign(Interface(array, stream=stream), cuda) for stream in (STREAM, 1)]
        assert len(views) == 2
        assert counts["cudaStreamSynchronize"] == 1

    @pytest.mark.parametrize("strides", [(12, 4), None])
    def test_interface_with_strides(self, strides: tuple[int, ...] | None, array: DeviceArray, cuda: FakeCuda) -> None:
        assert from_foreign(Interface(array, strides=strides), cuda).shape == (5, 3)

    def test_one_of_our_own(self, array: DeviceArray, cuda: FakeCuda) -> None:
        assert np.asarray(from_foreign(array, cuda)).tolist() == rows().tolist()

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
    def test_dlpack(self, dtype: str, cuda: FakeCuda, memory: CudaMemory) -> None:
        pytest.importorskip("cuda.core")
        tensor = Tensor(memory.asarray(rows(), dtype))
        view = from_foreign(tensor, cuda)
        assert (view.ptr, view.shape, view.dtype.name) == (tensor.array.ptr, (5, 3), dtype)
        assert np.array_equal(
            np.asarray(view, np.float32), rows().astype(dtype).astype(np.float32) if dtype == "bool" else rows()
        )
        assert tensor.streams == [STREAM]

    @pytest.mark.parametrize(
        ("shape", "strides"), [((1, 3), (99, 1)), ((2, 1), (1, 7)), ((0, 3), (5, 2)), ((2, 3), (3, 1))], ids=str
    )
    def test_strides_that_mean_nothing(self, shape: Sequence[int], strides: Sequence[int], cuda: FakeCuda) -> None:
        array = CudaMemory(cuda).empty(shape, "float32")
        assert from_foreign(Interface(array, strides=tuple(4 * step for step in strides)), cuda).shape == tuple(shape)

    def test_it_is_kept_until_its_last_work_is_done(self, cuda: FakeCuda) -> None:
        memory = CudaMemory(cuda)
        foreign = Interface(memory.asarray(rows()))
        view, copy = from_foreign(foreign, cuda)[1:], memory.empty((4, 3), "float32")
        del foreign
        gc.collect()
        cuda.copy(copy.ptr, view.ptr, view.nbytes)
        with cuda.counted() as counts:
            del view
            gc.collect()
        assert counts["cudaStreamSynchronize"] == 1
        assert cuda.fake.used_bytes == copy.nbytes
        assert np.array_equal(np.asarray(copy), rows()[1:])

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda array: [1, 2],
                "a list is no GPU array, expected __dlpack__ or __cuda_array_interface__. Feed a numpy array.",
            ),
            (lambda array: rows(), "the array lies on the host or another kind of device, expected GPU 0. Feed a numpy array"),
            (lambda array: Tensor(array, device=(2, 3)), "the array lies on GPU 3, expected GPU 0."),
            (
                lambda array: Tensor(array, strides=(1, 5)),
                "the GPU array [5, 3] has strides [1, 5], expected a contiguous one.",
            ),
            (
                lambda array: Interface(array, strides=(4, 20)),
                "the GPU array [5, 3] has strides [1, 5], expected a contiguous one.",
            ),
            (
                lambda array: Interface(array, dtype="<f8"),
                "the GPU array is of dtype float64, expected bfloat16, bool, float16",
            ),
        ],
        ids=["list", "numpy", "device", "dlpack strides", "interface strides", "dtype"],
    )
    def test_what_does_not_do(self, make: Any, message: str, array: DeviceArray, cuda: FakeCuda) -> None:
        with pytest.raises(BackendError) as caught:
            from_foreign(make(array), cuda)
        assert message in str(caught.value)

    def test_missing_library(self, array: DeviceArray, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
        with pytest.raises(MissingPackageError, match=r"'cuda-core' is not installed, .*: pip install 'cuda-core>=\S+'$"):
            from_foreign(Tensor(array), cuda)

"""The CUDA runtime: what each call does, in which order, and what is said where one fails."""

from __future__ import annotations

import gc
import inspect
import re
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import BackendError, MachineError, MissingPackageError, OptionError
from foveate.engines.backends.cuda import Allocation, Cuda, DeviceInfo, Workspace
from tests.engines.fake_cuda import FakeCuda, FakeRuntime

MIB = 2**20


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def any_cuda(request: pytest.FixtureRequest) -> Cuda:
    return FakeCuda() if request.param == "fake" else Cuda()


def read(cuda: Cuda, address: int, size: int) -> list[int]:
    host = np.empty(size, np.uint8)
    cuda.to_host(host, address)
    return host.tolist()


def test_info() -> None:
    cuda = FakeCuda(total_bytes=8 * MIB)
    cuda.malloc(MIB)
    assert cuda.info() == DeviceInfo("Fake GPU", "sm89", 8 * MIB, 7 * MIB, "13.0")


@given(st.lists(st.integers(0, 255), max_size=300))
def test_copies_keep_every_byte(values: list[int]) -> None:
    cuda = FakeCuda()
    source, target = cuda.malloc(len(values)), cuda.malloc(len(values))
    cuda.to_device(source, np.array(values, np.uint8))
    cuda.copy(target, source, len(values))
    assert read(cuda, target, len(values)) == values


def test_a_copied_array_may_be_changed_right_away(any_cuda: Cuda) -> None:
    address, host = any_cuda.malloc(4), np.arange(4, dtype=np.uint8)
    any_cuda.to_device(address, host)
    host[:] = 9
    assert read(any_cuda, address, 4) == [0, 1, 2, 3]


def test_a_strided_array_is_copied_as_it_looks(any_cuda: Cuda) -> None:
    address = any_cuda.malloc(3)
    any_cuda.to_device(address, np.arange(6, dtype=np.uint8)[::2])
    assert read(any_cuda, address, 3) == [0, 2, 4]


def test_small_reads_share_one_pinned_buffer_and_large_ones_do_without(cuda: FakeCuda) -> None:
    address = cuda.malloc(5 * MIB)
    cuda.fill_zero(address, 5 * MIB)
    with cuda.counted() as counts:
        assert read(cuda, address, 10) == [0] * 10
        assert read(cuda, address + 10, 4 * MIB) == [0] * (4 * MIB)
        assert not any(read(cuda, address, 5 * MIB))
    assert counts["cudaHostAlloc"] == 1
    assert counts["device_to_host"] == 9 * MIB + 10


def test_empty_allocations_are_apart_and_aligned(cuda: FakeCuda) -> None:
    addresses = {cuda.malloc(nbytes) for nbytes in (0, 0, 1, 300)}
    assert len(addresses) == 4
    assert not [address for address in addresses if address % 256]


def test_an_allocation_is_freed_when_it_is_gone(cuda: FakeCuda) -> None:
    memory = Allocation(cuda, 512)
    assert cuda.fake.used_bytes == 512
    del memory
    gc.collect()
    assert cuda.fake.used_bytes == 0


def test_memory_is_given_back_in_the_order_of_the_stream(any_cuda: Cuda) -> None:
    first, copy = any_cuda.malloc(4), any_cuda.malloc(4)
    any_cuda.to_device(first, np.full(4, 1, np.uint8))
    any_cuda.copy(copy, first, 4)
    any_cuda.free(first)
    again = any_cuda.malloc(4)
    any_cuda.to_device(again, np.full(4, 2, np.uint8))
    assert read(any_cuda, copy, 4) == [1] * 4
    assert read(any_cuda, again, 4) == [2] * 4


def test_out_of_memory_names_the_numbers_and_the_remedy() -> None:
    cuda = FakeCuda(total_bytes=16 * MIB)
    cuda.malloc(10 * MIB)
    with pytest.raises(MachineError) as caught:
        cuda.malloc(8 * MIB)
    assert str(caught.value) == (
        "GPU 0 (Fake GPU) is out of memory: 8 MiB wanted, 6 MiB of 16 MiB free. "
        "Keep fewer visual tokens, lower the batch or the KV capacity, or build engines for fewer tokens."
    )
    cuda.malloc(6 * MIB)


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    info = Cuda().info()
    assert re.fullmatch(r"sm\d{2,3}", info.target)
    assert 0 < info.free_bytes <= info.total_bytes
    with pytest.raises(MachineError, match="is out of memory"):
        Cuda().malloc(2 * info.total_bytes)


def test_a_failed_call_says_which_and_why(cuda: FakeCuda) -> None:
    address = cuda.malloc(4)
    with pytest.raises(
        BackendError, match=r"cudaMemcpyAsync failed on GPU 0: cudaErrorInvalidValue, error 1\. Look at the GPU"
    ):
        cuda.copy(address, address + 64, 4)


def test_a_failed_kernel_shows_at_the_next_wait(cuda: FakeCuda) -> None:
    cuda.fake.enqueue(lambda: 1 / 0)
    with pytest.raises(BackendError, match="cudaStreamSynchronize failed on GPU 0: cudaErrorIllegalAddress"):
        cuda.synchronize()


class TestGraph:
    def test_capture_runs_nothing_and_launch_runs_it_with_what_lies_there_now(self, any_cuda: Cuda) -> None:
        source, target = any_cuda.malloc(2), any_cuda.malloc(2)
        any_cuda.fill_zero(target, 2)
        graph = any_cuda.capture(lambda: any_cuda.copy(target, source, 2))
        assert read(any_cuda, target, 2) == [0, 0]
        for value in (3, 4):
            any_cuda.to_device(source, np.full(2, value, np.uint8))
            any_cuda.launch(graph)
            assert read(any_cuda, target, 2) == [value] * 2

    def test_a_destroyed_graph_is_not_launched(self, cuda: FakeCuda) -> None:
        address = cuda.malloc(2)
        graph = cuda.capture(lambda: cuda.fill_zero(address, 2))
        cuda.destroy(graph)
        with pytest.raises(BackendError, match="cudaGraphLaunch failed"):
            cuda.launch(graph)

    def test_a_failed_capture_leaves_the_stream_as_it_was(self, cuda: FakeCuda) -> None:
        with pytest.raises(BackendError, match="cudaStreamSynchronize failed on GPU 0: cudaErrorStreamCaptureUnsupported"):
            cuda.capture(cuda.synchronize)
        assert not cuda.fake.capturing
        cuda.synchronize()

    def test_memory_that_goes_during_a_capture_is_freed_once_and_not_by_the_graph(self, cuda: FakeCuda) -> None:
        gone, kept = cuda.malloc(4), cuda.malloc(4)

        def enqueue() -> None:
            cuda.free(gone)
            cuda.fill_zero(kept, 4)

        graph = cuda.capture(enqueue)
        assert cuda.fake.used_bytes == 4
        again = cuda.malloc(4)  # the freed block
        cuda.to_device(again, np.full(4, 1, np.uint8))
        cuda.launch(graph)
        cuda.launch(graph)
        assert read(cuda, again, 4) == [1] * 4


class TestWorkspace:
    def test_grows_and_is_kept(self, cuda: FakeCuda) -> None:
        workspace = Workspace(cuda)
        first = workspace.reserve(100)
        assert workspace.reserve(60) is first
        second = workspace.reserve(101)
        assert (first.nbytes, second.nbytes) == (100, 101)

    def test_growth(self, cuda: FakeCuda) -> None:
        workspace = Workspace(cuda, growth=2)
        assert [workspace.reserve(size).nbytes for size in (100, 101, 200, 900)] == [100, 200, 200, 900]

    def test_there_need_be_no_room_for_both(self) -> None:
        cuda = FakeCuda(total_bytes=1000)
        workspace = Workspace(cuda)
        workspace.reserve(600)
        assert workspace.reserve(900).nbytes == 900
        del workspace
        assert cuda.fake.used_bytes == 0


class TestMissing:
    @pytest.mark.parametrize("module", ["cuda.bindings", "cuda.bindings.runtime"])
    def test_package(self, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            MissingPackageError, match=r"'cuda-bindings' is not installed, .*: pip install 'cuda-bindings>=\S+'$"
        ):
            Cuda()

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"driver": 0}, "no NVIDIA driver is loaded. Install it, or use the backend 'onnxruntime', which needs none."),
            (
                {"driver": 12040},
                "the NVIDIA driver knows CUDA up to 12.4, the package 'cuda-bindings' needs 13.5. Update the driver.",
            ),
            (
                {"devices": 0},
                "there is no NVIDIA GPU. Find one, or use the backend 'onnxruntime', which needs none.",
            ),
        ],
        ids=["driver", "old driver", "device"],
    )
    def test_driver_and_device(self, limits: dict[str, int], message: str) -> None:
        with pytest.raises(BackendError) as caught:
            FakeCuda(**limits)
        assert str(caught.value) == message

    @pytest.mark.parametrize("device", [-1, 2])
    def test_index(self, device: int) -> None:
        bindings = SimpleNamespace(runtime=FakeRuntime(devices=2), driver=SimpleNamespace(cuuint64_t=int))
        with pytest.raises(OptionError, match=f"there is no GPU {device}, expected 0 to 1. Choose one of those."):
            Cuda(device, bindings)


class TestFake:
    """The fake has the functions, parameters and values of the real thing."""

    @pytest.fixture
    def runtime(self) -> Any:
        return pytest.importorskip("cuda.bindings.runtime")

    def test_parameters(self, runtime: Any) -> None:
        functions = inspect.getmembers(FakeRuntime, inspect.isfunction)
        for name, function in functions:
            if not name.startswith("cuda"):
                continue
            signature = getattr(runtime, name).__doc__.strip().splitlines()[0]
            parameters = re.findall(r"(\w+)(?:: \w+)?(?=[,)])", signature.partition("(")[2])
            assert parameters == list(inspect.signature(function).parameters)[1:], signature

    @pytest.mark.parametrize("name", ["cudaError_t", "cudaMemcpyKind", "cudaMemPoolAttr", "cudaStreamCaptureMode"])
    def test_values(self, name: str, runtime: Any) -> None:
        for member in getattr(FakeRuntime, name):
            assert int(getattr(getattr(runtime, name), member.name)) == member.value

    def test_constants(self, runtime: Any) -> None:
        for name in ("cudaStreamNonBlocking", "cudaHostAllocDefault"):
            assert getattr(runtime, name) == getattr(FakeRuntime, name)
        assert import_module("cuda.bindings.driver").cuuint64_t(2**64 - 1)

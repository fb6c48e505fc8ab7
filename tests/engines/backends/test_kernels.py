"""Compiled kernels that are kept beside an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foveate.engines.backends.tensorrt.kernels import KernelCache


class Library:
    """A process of the library: what it compiled, and what it takes from an earlier one."""

    def __init__(self, gpu: bytes = b"one") -> None:
        self.gpu = gpu
        self.compiled: list[bytes] = []
        self.attached: list[Any] = []

    def config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=lambda: self, set_runtime_cache=self.attached.append)

    def deserialize(self, blob: bytes) -> bool:
        gpu, _, kernels = blob.partition(b":")
        if gpu != self.gpu:
            return False
        self.compiled = kernels.split()
        return True

    def serialize(self) -> memoryview:
        return memoryview(self.gpu + b":" + b" ".join(self.compiled))


def run(library: Library, path: Path, *kernels: bytes) -> None:
    cache = KernelCache(path)
    cache.attach(library.config())
    cache.attach(library.config())
    assert library.attached == [library, library]
    library.compiled += kernels
    cache.save()


def test_the_next_process_has_the_kernels(tmp_path: Path) -> None:
    run(Library(), tmp_path / "kernels.bin", b"gemm")
    following = Library()
    run(following, tmp_path / "kernels.bin", b"softmax")
    assert following.compiled == [b"gemm", b"softmax"]
    assert (tmp_path / "kernels.bin").read_bytes() == b"one:gemm softmax"


def test_kernels_of_another_gpu_are_replaced(tmp_path: Path) -> None:
    run(Library(b"one"), tmp_path / "kernels.bin", b"gemm")
    run(Library(b"two"), tmp_path / "kernels.bin", b"conv")
    assert (tmp_path / "kernels.bin").read_bytes() == b"two:conv"


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    run(Library(), tmp_path / "kernels.bin", b"gemm")
    written = (tmp_path / "kernels.bin").stat().st_mtime_ns
    run(Library(), tmp_path / "kernels.bin")
    assert (tmp_path / "kernels.bin").stat().st_mtime_ns == written


def test_a_folder_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    run(Library(), tmp_path / "missing" / "kernels.bin", b"gemm")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("attached", [True, False])
def test_saving_twice(tmp_path: Path, attached: bool) -> None:
    cache = KernelCache(tmp_path / "kernels.bin")
    if attached:
        cache.attach(Library().config())
    cache.save()
    cache.save()
    assert (tmp_path / "kernels.bin").exists() == attached

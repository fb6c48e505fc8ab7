"""Arrays on the host, and the names of dtypes."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest

from foveate.engines import Array, HostMemory, Memory, MissingPackageError
from foveate.engines.format.dtypes import host_dtype

MEMORY: Memory = HostMemory()


def test_new_arrays() -> None:
    array = MEMORY.empty((2, 3), "int64")
    assert (array.shape, array.dtype.name, array.nbytes) == ((2, 3), "int64", 48)
    zeros = MEMORY.zeros([4], "bfloat16")
    assert zeros.dtype.name == "bfloat16"
    assert not np.asarray(zeros, np.float32).any()


def test_zero_writes_into_a_view() -> None:
    rows = np.ones((3, 2))
    MEMORY.zero(rows[1:2])
    assert rows.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_concatenate() -> None:
    rows: Array = np.arange(6).reshape(3, 2)
    assert MEMORY.concatenate([rows]) is rows
    assert np.array_equal(MEMORY.concatenate([rows[:1], rows[1:]]), rows)


def test_asarray_casts_only_where_it_has_to() -> None:
    rows: Array = np.array([1.5, 2.5], np.float32)
    assert MEMORY.asarray(rows) is rows
    assert MEMORY.asarray(rows, "float32") is rows
    half = MEMORY.asarray(rows, "bfloat16")
    assert half.dtype.name == "bfloat16"
    assert np.asarray(half, np.float32).tolist() == [1.5, 2.5]


@pytest.mark.parametrize("name", ["bool", "int64", "float16", "float32", "bfloat16"])
def test_dtype_names(name: str) -> None:
    assert host_dtype(name).name == name


def test_bfloat16_is_that_of_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_dtype("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert host_dtype("float16") == np.float16
    with pytest.raises(MissingPackageError, match=r"'ml-dtypes' is not installed, .*\. Run: pip install 'ml-dtypes>=[\d.]+'$"):
        host_dtype("bfloat16")

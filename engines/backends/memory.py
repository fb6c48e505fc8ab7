"""Where a session keeps its arrays: on the host, or on a GPU that the graphs of a pipeline pass them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from foveate.engines.format.dtypes import host_dtype


class DType(Protocol):
    """The dtype of an array, known by numpy's name of it; `bfloat16` is one of the names."""

    @property
    def name(self) -> str: ...


class Array(Protocol):
    """A contiguous array in some memory; numpy's satisfy it. `np.asarray` brings it to the host."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> DType: ...

    @property
    def ndim(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | slice, /) -> Any:
        """A view of a row, or of consecutive rows, along the first axis."""
        ...

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray: ...


class Memory(Protocol):
    """Makes arrays where a session works on them. Threads may share it."""

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """An array with anything in it."""
        ...

    def zeros(self, shape: Sequence[int], dtype: str) -> Array: ...

    def zero(self, array: Array) -> None:
        """Zeros an array that lies here, or a view of one."""
        ...

    def exchange_rows(self, array: Array, first: int, second: int, held: tuple[int, int]) -> None:
        """Puts two rows of `[rows, heads, capacity, head_dim]`, an array that lies here, into each other's place.

        Args:
            array: as given; it is written to.
            first, second: the rows.
            held: how many of the first `capacity` entries of each count; the others may become anything that was there.
        """
        ...

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Joins one or more arrays of one dtype along the first axis; a single one is passed on as it is."""
        ...

    def asarray(self, array: Array, dtype: str | None = None) -> Array:
        """Brings an array here, and to another dtype if asked for; one that is here already is passed on as it is."""
        ...

    def shares(self, other: Memory) -> bool:
        """Whether arrays of the other are at home here."""
        ...

    def synchronize(self) -> None:
        """Waits until arrays hold what runs and copies were asked to write."""
        ...


class HostMemory:
    """numpy arrays."""

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """See `Memory`."""
        return np.empty(shape, host_dtype(dtype))

    def zeros(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """See `Memory`."""
        return np.zeros(shape, host_dtype(dtype))

    def zero(self, array: Array) -> None:
        """See `Memory`."""
        np.asarray(array)[...] = 0

    def exchange_rows(self, array: Array, first: int, second: int, held: tuple[int, int]) -> None:
        """See `Memory`."""
        host, (of_first, of_second) = np.asarray(array), held
        aside = host[second, :, :of_second].copy()
        host[second, :, :of_first] = host[first, :, :of_first]
        host[first, :, :of_second] = aside

    def concatenate(self, arrays: Sequence[Array]) -> np.ndarray:
        """See `Memory`."""
        hosts = [np.asarray(array) for array in arrays]
        return hosts[0] if len(hosts) == 1 else np.concatenate(hosts)

    def asarray(self, array: Array, dtype: str | None = None) -> np.ndarray:
        """See `Memory`."""
        return np.asarray(array, None if dtype is None else host_dtype(dtype))

    def shares(self, other: Memory) -> bool:
        """See `Memory`."""
        return isinstance(other, HostMemory)

    def synchronize(self) -> None:
        """See `Memory`; on the host a run is over when it returns."""

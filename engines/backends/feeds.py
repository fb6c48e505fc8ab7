"""What a run is fed and writes into, held against the graph's spec before a library sees it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.engines.backends.memory import Array
from foveate.engines.errors import BackendError
from foveate.engines.format.spec import GraphSpec, TensorSpec


def check_feeds(feeds: Mapping[str, Array], spec: GraphSpec) -> dict[str, int]:
    """Checks inputs against a graph's spec and returns the value of each symbol.

    Raises:
        BackendError: an input is missing or unknown, or has another dtype, rank or size than the spec says, or two
            inputs disagree about a symbol.
    """
    _refuse_unknown(feeds, spec.inputs, f"graph '{spec.name}' has no input")
    symbols: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name not in feeds:
            raise BackendError(f"graph '{spec.name}' was run without its input '{tensor.name}'. Feed a {tensor.dtype} array.")
        _check_tensor(feeds[tensor.name], tensor, f"input '{tensor.name}' of graph '{spec.name}'", symbols)
    return symbols


def check_buffers(buffers: Mapping[str, Array], spec: GraphSpec, symbols: Mapping[str, int]) -> None:
    """Checks arrays that outputs are to be written into; `symbols` is what `check_feeds` returned.

    Raises:
        BackendError: there is no such output, the array does not fit it, or it can't be written in place.
    """
    _refuse_unknown(buffers, spec.outputs, f"graph '{spec.name}' has no output")
    known = dict(symbols)
    for tensor in spec.outputs:
        if tensor.name not in buffers:
            continue
        where = f"buffer '{tensor.name}' of graph '{spec.name}'"
        _check_tensor(buffers[tensor.name], tensor, where, known)
        if not _is_writable(buffers[tensor.name]):
            raise BackendError(f"{where}: the array is read-only or not contiguous. Pass a whole array of its own.")


def _is_writable(array: Array) -> bool:
    """Whether results can be written in place; arrays on a device always can."""
    return not isinstance(array, np.ndarray) or bool(array.flags.c_contiguous and array.flags.writeable)


def _refuse_unknown(arrays: Mapping[str, Array], tensors: tuple[TensorSpec, ...], fact: str) -> None:
    known = dict.fromkeys(tensor.name for tensor in tensors)
    for name in arrays:
        if name not in known:
            raise BackendError(f"{fact} '{name}'. Choose from {', '.join(known)}.")


def _check_tensor(value: Array, tensor: TensorSpec, where: str, symbols: dict[str, int]) -> None:
    if value.dtype.name != tensor.dtype:
        raise BackendError(f"{where}: got {value.dtype.name}, expected {tensor.dtype}. Cast it before the run.")
    if value.ndim != len(tensor.shape):
        raise BackendError(f"{where}: got shape {list(value.shape)}, expected {list(tensor.shape)}. Reshape it before the run.")
    expected = [
        symbols.setdefault(dim, size) if isinstance(dim, str) else dim
        for size, dim in zip(value.shape, tensor.shape, strict=True)
    ]
    if list(value.shape) != expected:
        raise BackendError(
            f"{where}: got shape {list(value.shape)}, expected {expected} for {list(tensor.shape)}. Make the arrays agree."
        )

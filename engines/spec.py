"""What a graph takes and gives: names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from foveate.engines.errors import BackendError


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output. A dimension is a number or the name of a symbol that is equal across all graphs."""

    name: str
    dtype: str
    """numpy's name of the dtype: `float32`, `int64`, `bool`."""
    shape: tuple[int | str, ...]


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX graph of a bundle; `file` is relative to the bundle."""

    name: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def check_feeds(feeds: Mapping[str, np.ndarray], spec: GraphSpec) -> dict[str, int]:
    """Checks inputs against a graph's spec and returns the value of each symbol.

    Raises:
        BackendError: an input is missing or unknown, or has another dtype, rank or size than the spec says, or two
            inputs disagree about a symbol.
    """
    known = {tensor.name for tensor in spec.inputs}
    for name in feeds.keys() - known:
        raise BackendError(f"graph '{spec.name}' has no input '{name}'. Its inputs are {', '.join(sorted(known))}.")
    symbols: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name not in feeds:
            raise BackendError(f"graph '{spec.name}' was run without its input '{tensor.name}'. Feed a {tensor.dtype} array.")
        _check_tensor(feeds[tensor.name], tensor, spec.name, symbols)
    return symbols


def _check_tensor(value: np.ndarray, tensor: TensorSpec, graph: str, symbols: dict[str, int]) -> None:
    where = f"input '{tensor.name}' of graph '{graph}'"
    if value.dtype.name != tensor.dtype:
        raise BackendError(f"{where}: got {value.dtype.name}, expected {tensor.dtype}. Cast it before the run.")
    if value.ndim != len(tensor.shape):
        raise BackendError(f"{where}: got shape {list(value.shape)}, expected {list(tensor.shape)}. Reshape it before the run.")
    for size, dim in zip(value.shape, tensor.shape, strict=True):
        wanted = symbols.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != wanted:
            raise BackendError(
                f"{where}: got shape {list(value.shape)}, expected {list(tensor.shape)} where {dim} is {wanted}. "
                "Make the inputs agree."
            )

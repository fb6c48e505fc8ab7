"""What an engine's precision makes of a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from foveate.engines.format.precisions import COMPUTED
from foveate.engines.format.spec import GraphSpec, TensorSpec

_FIRST_BF16 = 80
"""Compute capability, times ten, from which on a GPU computes in bf16."""


def computes_in_bf16(target: str) -> bool:
    """Whether a GPU does, as `sm89`."""
    return int(target[2:]) >= _FIRST_BF16


def typed_spec(spec: GraphSpec, precision: str, fixed: Mapping[str, int]) -> GraphSpec:
    """The spec of an engine: tensors that pass between graphs in half precision, and symbols that are a number in it."""
    half = COMPUTED[precision]

    def typed(tensor: TensorSpec) -> TensorSpec:
        dtype = half if tensor.narrowable and tensor.dtype == "float32" else tensor.dtype
        shape = tuple(fixed.get(size, size) if isinstance(size, str) else size for size in tensor.shape)
        return replace(tensor, dtype=dtype, shape=shape)

    return replace(spec, inputs=tuple(map(typed, spec.inputs)), outputs=tuple(map(typed, spec.outputs)))

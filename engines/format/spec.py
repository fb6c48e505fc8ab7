"""What a graph takes and gives: names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from foveate.engines.errors import BundleError
from foveate.engines.format.dtypes import DType
from foveate.engines.format.precisions import FP32, GraphPrecision

Size = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output. A dimension is a number or the name of a symbol that is equal across all graphs."""

    name: str
    """As in the graph's file."""
    dtype: DType
    """numpy's name of it, or `bfloat16`."""
    shape: tuple[Size | Annotated[str, msgspec.Meta(min_length=1)], ...]
    """A number is fixed, a symbol is up to the request; empty for a scalar."""
    location: Literal["host", "device"] = "host"
    """`host`: the host makes this input, or reads this output, in every run. `device`: it stays on the GPU where one runs the
    graphs: another graph takes it, or the host on demand."""
    narrowable: bool = False
    """Whether an engine of half precision takes or gives it in that; what is not stays float32."""


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ONNX graph of a bundle."""

    name: str
    """Its key in `graphs`."""
    file: str
    """Its ONNX file; the weights lie in the same folder."""
    inputs: tuple[TensorSpec, ...]
    """All of them are fed in every run."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the file."""
    precision: GraphPrecision = FP32
    """Of its matrices: `fp32`, `int8` or `int4`."""


def check_interface(spec: GraphSpec, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], file: Path) -> None:
    """Holds what a library found in a graph's file against the spec: names, dtypes, ranks, and sizes where both have a number.

    Args:
        spec: the manifest's.
        inputs: those of the file.
        outputs: those of the file.
        file: for the error.

    Raises:
        BundleError: the file holds another graph.
    """
    for kind, found, wanted in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        there, expected = ({tensor.name: tensor for tensor in tensors} for tensors in (found, wanted))
        for name in dict.fromkeys((*expected, *there)):
            if not _agree(there.get(name), expected.get(name)):
                has, asked = (f"{t.dtype} {list(t.shape)}" if t else "nothing" for t in (there.get(name), expected.get(name)))
                raise BundleError(
                    f"{file} is not graph '{spec.name}' as the manifest describes it: it has {has} as {kind} '{name}', "
                    f"expected {asked}. Export the bundle again."
                )


def _agree(found: TensorSpec | None, wanted: TensorSpec | None) -> bool:
    if found is None or wanted is None:
        return False
    sizes = zip(found.shape, wanted.shape, strict=False)
    same = all(one == other for one, other in sizes if isinstance(one, int) and isinstance(other, int))
    return same and (found.dtype, len(found.shape)) == (wanted.dtype, len(wanted.shape))

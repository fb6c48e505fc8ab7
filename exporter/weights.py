"""The weights of a bundle: every parameter of its graphs once, in one safetensors file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor, nn

from foveate.engines import ExportError
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.modules import Linear, is_empty
from foveate.exporter.safetensors import FilePlan, StoredTensor


@dataclass(frozen=True)
class Weight:
    """A parameter and the tensor of the checkpoint that it is made from.

    A `transposed` weight is `[in, out]` in the graphs and `[out, ...]` in the checkpoint, where it may be a convolution.
    """

    shape: tuple[int, ...]
    source: StoredTensor
    transposed: bool
    dtype: ClassVar[str] = "F32"

    def chunks(self) -> Iterator[Tensor]:
        """The values in the layout of the graphs; what is not transposed comes a few rows at a time."""
        return iter([self.source.read().flatten(1).T]) if self.transposed else self.source.rows()


def resolve_weights(
    modules: Iterable[nn.Module], checkpoint: Checkpoint, checkpoint_keys: Callable[[str], Sequence[str]]
) -> dict[str, Weight]:
    """Finds the tensor of the checkpoint for each parameter of the modules; an equal name is the same parameter.

    Raises:
        ExportError: a tensor is missing, or has another shape than the config says.
    """
    weights: dict[str, Weight] = {}
    for module in modules:
        linear = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, Linear)}
        for name, parameter in module.named_parameters():
            if is_empty(parameter) and name not in weights:
                source = _find(checkpoint, checkpoint_keys(name))
                weights[name] = Weight(tuple(parameter.shape), source, transposed=name in linear)
                _check_shape(weights[name])
    return weights


class Writable(Protocol):
    """A tensor of the bundle that is made while it is written."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """As safetensors has it: `F32`, `I8` or `U8`."""
        ...

    def chunks(self) -> Iterator[Tensor]:
        """The values, whole or in consecutive rows."""
        ...


def write_weights(weights: Mapping[str, Writable], path: Path) -> dict[str, StoredTensor]:
    """Writes every weight to a file, a few at a time, and says where each one lies."""
    shapes = {name: weight.shape for name, weight in weights.items()}
    plan = FilePlan.lay_out(path, shapes, {name: weight.dtype for name, weight in weights.items()})
    plan.write(weights[name].chunks() for name in plan.tensors)
    return plan.tensors


def _find(checkpoint: Checkpoint, keys: Sequence[str]) -> StoredTensor:
    for key in keys:
        if key in checkpoint.tensors:
            return checkpoint.tensors[key]
    files = ", ".join(sorted({tensor.file.name for tensor in checkpoint.tensors.values()}))
    raise ExportError(f"{checkpoint.path} has no tensor '{' or '.join(keys)}' in {files}. Download the checkpoint again.")


def _check_shape(weight: Weight) -> None:
    source = weight.source
    stored = source.shape
    if weight.transposed:
        stored = (math.prod(source.shape[1:]), *source.shape[:1])
    if stored != weight.shape:
        expected = list(weight.shape[::-1] if weight.transposed else weight.shape)
        raise ExportError(
            f"tensor '{source.name}' of {source.file} has shape {list(source.shape)}, config.json wants {expected}. "
            "Use the config.json that belongs to these weights."
        )

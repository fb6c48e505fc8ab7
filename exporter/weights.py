"""The weights of a bundle: every parameter of its graphs once, in one safetensors file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from foveate.engines import ExportError
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.modules import Linear, is_empty
from foveate.exporter.safetensors import FilePlan, StoredTensor

_DECODER = "language_model."
_TABLE, _HEAD = f"{_DECODER}embed_tokens.weight", f"{_DECODER}lm_head.weight"
_PACKED = (".qweight", ".weight_packed", ".blocks", ".weight.absmax", ".SCB")
"""How the tensors that stand in place of a quantised weight end: GPTQ and AWQ, compressed-tensors, MXFP4, bitsandbytes."""
_QUANTISED = "Export the checkpoint that it was quantised from: an export in int8 or int4 quantises by itself."


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
        ExportError: a tensor is missing, has another shape than the config says or no float type, or one that belongs to these
            parameters would be left out.
    """
    weights: dict[str, Weight] = {}
    modules = list(modules)
    parameters = {name for module in modules for name, _ in module.named_parameters()}
    for module in modules:
        linear = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, Linear)}
        for name, parameter in module.named_parameters():
            if is_empty(parameter) and name not in weights:
                tied = name == _TABLE and _HEAD not in parameters
                source = _find(checkpoint, [*checkpoint_keys(name), *(checkpoint_keys(_HEAD) if tied else ())])
                weights[name] = Weight(tuple(parameter.shape), source, transposed=name in linear)
                _check_dtype(source)
                _check_shape(weights[name])
    if _TABLE in weights and _HEAD not in weights:
        _check_tied(weights[_TABLE], checkpoint, checkpoint_keys(_HEAD))
    _check_complete(weights, checkpoint)
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
    modules = tuple(f"{key.rpartition('.')[0]}." for key in keys)
    packed = next((name for name in checkpoint.tensors if name.startswith(modules) and name.endswith(_PACKED)), None)
    if packed:
        raise ExportError(f"{checkpoint.path} has '{packed}' in place of '{keys[0]}': it is quantised. {_QUANTISED}")
    files = ", ".join(sorted({tensor.file.name for tensor in checkpoint.tensors.values()}))
    raise ExportError(f"{checkpoint.path} has no tensor '{' or '.join(keys)}' in {files}. Download the checkpoint again.")


def _check_dtype(source: StoredTensor) -> None:
    if not source.is_float:
        raise ExportError(f"tensor '{source.name}' of {source.file} is {source.dtype}, expected floats. {_QUANTISED}")


def _check_tied(table: Weight, checkpoint: Checkpoint, head_keys: Sequence[str]) -> None:
    """A head of its own that the config calls tied; transformers compares the two likewise."""
    head = next((checkpoint.tensors[key] for key in head_keys if key in checkpoint.tensors), table.source)
    alike = (head.dtype, head.shape) == (table.source.dtype, table.source.shape)
    if not (head == table.source or (alike and all(map(torch.equal, head.rows(), table.source.rows())))):
        raise ExportError(
            f"tensor '{head.name}' of {head.file} is not '{table.source.name}', which the config says it is. "
            "Set 'tie_word_embeddings' to false in it, wherever it is true."
        )


def _check_complete(weights: Mapping[str, Weight], checkpoint: Checkpoint) -> None:
    """Refuses to leave out floats of a module that is used (a bias, an adapter), or further layers of the decoder.

    A vision tower may well have layers behind the one that is read.
    """
    names = {tensor: name for name, tensor in checkpoint.tensors.items()}
    used = {names[weight.source] for weight in weights.values()}
    modules = {name.rpartition(".")[0] for name in used if name.endswith((".weight", ".bias"))}
    layers = {_kind(names[weight.source]) for name, weight in weights.items() if name.startswith(_DECODER)}
    for name in sorted(checkpoint.tensors.keys() - used):
        parents = {name[:end] for end, letter in enumerate(name) if letter == "."}
        if checkpoint.tensors[name].is_float and (_kind(name) in layers or parents & modules):
            raise ExportError(
                f"tensor '{name}' of {checkpoint.tensors[name].file} has no place in the graphs, by what config.json says. "
                "Use the config.json that belongs to these weights."
            )


def _kind(name: str) -> str:
    """A name without its layer."""
    return re.sub(r"\.\d+\.", ".N.", name)


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

"""A module becomes an ONNX file whose weights lie in a safetensors file beside it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from foveate.engines import GraphSpec, TensorSpec
from foveate.engines.format.names import PAST
from foveate.engines.format.symbols import example_sizes
from foveate.exporter.decoder import OPSET
from foveate.exporter.graphs import GraphModule
from foveate.exporter.quiet import quiet
from foveate.exporter.safetensors import StoredTensor


def trace_graph(graph: GraphModule, weights: Set[str]) -> ir.Model:
    """A graph as ONNX, whose `weights`, named like the parameters of its module, have no values yet."""
    with quiet():
        model = _trace(graph)
        # Without values the weights pass through folding untouched.
        for name in weights & model.graph.initializers.keys():
            model.graph.initializers[name].const_value = None
        optimizer.fold_constants(model)
        passes.CommonSubexpressionEliminationPass()(model)
        optimizer.remove_unused_nodes(model)
        # The trace notes the source line of every node, with the paths of this machine.
        passes.ClearMetadataAndDocStringPass()(model)
    return model


def save_graph(model: ir.Model, spec: GraphSpec, stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Writes a graph to `path`.

    Args:
        model: from `trace_graph`.
        spec: what it takes and gives.
        stored: where each of its weights lies, by name; the files are in the folder of `path`, because ONNX Runtime refuses
            external data outside of it.
        path: the ONNX file to write.
    """
    for name in stored.keys() & model.graph.initializers.keys():
        model.graph.initializers[name].const_value = _external(stored[name])
    _name_dimensions(model.graph, spec)
    ir.save(model, path)


def _trace(graph: GraphModule) -> ir.Model:
    inputs = graph.spec.inputs
    shapes, sizes = _grouped(inputs, [_dynamic(tensor) for tensor in inputs]), example_sizes(inputs)
    parameters = inspect.signature(graph.module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        shapes = (shapes,)
    program = torch.onnx.export(
        graph.module,
        _grouped(inputs, [_example(tensor, sizes) for tensor in inputs]),
        dynamo=True,
        opset_version=OPSET,
        input_names=[tensor.name for tensor in inputs],
        output_names=[tensor.name for tensor in graph.spec.outputs],
        dynamic_shapes=shapes,
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no program for graph '{graph.spec.name}'")
    return program.model


def _grouped(inputs: tuple[TensorSpec, ...], values: list[Any]) -> tuple[Any, ...]:
    """The values as the module takes them: those of the cache together in one list at the end."""
    past = [value for tensor, value in zip(inputs, values, strict=True) if tensor.name.startswith(PAST)]
    single = [value for tensor, value in zip(inputs, values, strict=True) if not tensor.name.startswith(PAST)]
    return (*single, past) if past else tuple(single)


def _example(tensor: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def _dynamic(tensor: TensorSpec) -> dict[int, Any]:
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(tensor.shape) if isinstance(size, str)}


def _external(tensor: StoredTensor) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        tensor.file.name,
        offset=tensor.offset,
        length=tensor.size_bytes,
        dtype=ir.DataType.from_short_name(tensor.dtype.lower()),
        shape=ir.Shape(tensor.shape),
        name=tensor.name,
        base_dir=tensor.file.parent,
    )


def _name_dimensions(graph: ir.Graph, spec: GraphSpec) -> None:
    """Gives inputs and outputs the shapes of the spec. Symbols of the trace in between would contradict them, so they go."""
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for value, tensor in zip([*graph.inputs, *graph.outputs], [*spec.inputs, *spec.outputs], strict=True):
        value.shape = ir.Shape(tensor.shape)

"""Weights in 8 and 4 bits, and the graphs that compute with them on ONNX Runtime.

`int8` stores a matrix `[in, out]` with one scale per column; activations are rounded to 8 bits as they come (one scale a
tensor), so products run in integers: fast where many rows meet the matrix, as in a prefill or a vision tower. `int4` stores
blocks of 128 consecutive weights of a column with a scale and a zero each and reads an eighth of the bytes: fast where one row
does, as in a decode step. Tables that are read by row, or as the output head, have blocks of 128 in 8 bits.

What they cost SmolLM2-135M, as KL divergence of the next token from fp32, in nats: 4 bits in blocks of 32 0.30, of 64 0.32, of
128 0.36; the head in 4 bits in blocks of 64 0.17, in 8 bits in blocks of 128 0.0009. Measured with
`python -m benchmarks.blocks --texts 8 --tokens 500`. A step of a 2B decoder takes 44, 40 and 35 ms with the three blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor

from foveate.engines.format.precisions import INT4
from foveate.exporter.weights import Weight

BLOCK = 128
"""Weights of a matrix in 4 bits that share a scale and a zero."""
ROW_BLOCK = 128
"""Weights of a table in 8 bits that share a scale."""
_POSITIONS = "position_embedding.weight"
"""How the table of a tower's positions ends, which is small and stays as it is."""
_LARGEST_4, _MIDDLE_8 = 15, 128
_CONTRIB = "com.microsoft"
_INT8_COMPUTE = 4  # `accuracy_level` of MatMulNBits: activations in 8 bits
_AT_ONCE = 400_000
"""Weights that are rounded to 4 bits at once, so that they stay in the processor's cache."""


class Quantised(NamedTuple):
    """Integers, and what makes weights of them: scales, and the integers that stand for 0 where they differ."""

    values: Tensor
    scales: Tensor
    zeros: Tensor | None = None


def quantise_columns(weight: Tensor) -> Quantised:
    """int8 `[in, out]` and float32 `[out]` of a matrix `[in, out]`: `weight ~ values * scales`."""
    scales = weight.abs().amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return Quantised((weight / scales).round().to(torch.int8), scales)


def quantise_blocks(weight: Tensor, size: int = BLOCK) -> Quantised:
    """4 bits of a matrix `[in, out]`: `weight ~ (values - zeros) * scales`, each block from its smallest to its largest weight.

    Smaller scales, which clip the largest weights, have less squared error and cost SmolLM2-135M more. In uint8, the even one
    of two in the low half: values `[out, blocks, size / 2]`, zeros `[out, blocks / 2]`, rounded up.
    """
    found = [_to_4_bits(_blocks(rows, size)) for rows in weight.T.split(max(1, _AT_ONCE // weight.shape[0]))]
    return Quantised(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _to_4_bits(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, scales and zeros of blocks `[rows, blocks, size]`; 0 is among the weights that they can be."""
    low, high = (end(dim=-1, keepdim=True).values for end in (blocks.min, blocks.max))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = _nonzero((high - low) / _LARGEST_4)
    zeros = (-low / scales).round_()
    values = (blocks / scales).round_().add_(zeros).clamp_(0, _LARGEST_4)
    return _in_pairs(values), scales[..., 0], _in_pairs(zeros[..., 0])


def _in_pairs(halves: Tensor) -> Tensor:
    """uint8 of numbers of 4 bits, two in each along the last axis, filled up with 0."""
    pairs = torch.nn.functional.pad(halves, (0, halves.shape[-1] % 2)).to(torch.uint8)
    return pairs[..., 0::2] | pairs[..., 1::2] << 4


def quantise_rows(table: Tensor) -> Quantised:
    """8 bits: uint8 `[rows, blocks, 128]` and float32 `[rows, blocks]` of a table `[rows, width]`:
    `table ~ (values - 128) * scales`."""
    blocks = _blocks(table, ROW_BLOCK)
    scales = _nonzero(blocks.abs().amax(dim=-1, keepdim=True) / (_MIDDLE_8 - 1))
    return Quantised(((blocks / scales).round() + _MIDDLE_8).to(torch.uint8), scales[..., 0])


def _blocks(rows: Tensor, size: int) -> Tensor:
    """`[rows, blocks, size]` of `[rows, width]`, filled up with zeros."""
    padded = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % size))
    return padded.unflatten(1, (-1, size))


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales)


class _Source:
    """A weight that is quantised once: what comes of it beside the integers waits until it is asked for."""

    def __init__(self, weight: Weight, quantise: Callable[[Tensor], Quantised]) -> None:
        self._weight = weight
        self._quantise = quantise
        self._waiting: dict[str, list[Tensor]] = {}

    def values(self) -> Iterator[Tensor]:
        """The integers, a few rows at a time where rows are quantised by themselves."""
        self._waiting = {"scales": [], "zeros": []}
        for chunk in self._weight.chunks():
            found = self._quantise(chunk.float())
            for name, waiting in self._waiting.items():
                waiting.append(getattr(found, name))
            yield found.values

    def beside(self, name: str) -> Iterator[Tensor]:
        """`scales` or `zeros` that belong to the integers."""
        if name not in self._waiting:
            self._waiting[name] = [getattr(self._quantise(chunk.float()), name) for chunk in self._weight.chunks()]
        yield from self._waiting.pop(name)


@dataclass(frozen=True)
class Part:
    """Integers, scales or zeros of a quantised weight, as a tensor of the bundle.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        dtype: `I8`, `U8` or `F32`, as safetensors has it.
        chunks: the values, whole or in consecutive rows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterator[Tensor]]


def column_parts(name: str, weight: Weight) -> list[Part]:
    """Of a matrix in int8."""
    return _parts(f"{name}.int8", _Source(weight, quantise_columns), "I8", weight.shape, weight.shape[1:])


def block_parts(name: str, weight: Weight) -> list[Part]:
    """Of a matrix in 4 bits."""
    size, columns = weight.shape
    blocks = -(-size // BLOCK)
    source, name = _Source(weight, quantise_blocks), f"{name}.int4"
    zeros = Part(f"{name}_zeros", (columns, -(-blocks // 2)), "U8", partial(source.beside, "zeros"))
    return [*_parts(name, source, "U8", (columns, blocks, BLOCK // 2), (columns, blocks)), zeros]


def row_parts(name: str, weight: Weight) -> list[Part]:
    """Of a table in 8 bits."""
    rows, width = weight.shape
    scales = (rows, -(-width // ROW_BLOCK))
    return _parts(f"{name}.uint8", _Source(weight, quantise_rows), "U8", (*scales, ROW_BLOCK), scales)


def _parts(name: str, source: _Source, dtype: str, shape: tuple[int, ...], scales: tuple[int, ...]) -> list[Part]:
    """Integers of a shape, and scales of another."""
    return [
        Part(name, shape, dtype, source.values),
        Part(f"{name}_scales", scales, "F32", partial(source.beside, "scales")),
    ]


def quantise_graph(model: ir.Model, weights: Mapping[str, Weight], precision: str) -> dict[str, Part]:
    """Makes a graph compute with quantised weights, which it names but has no values of.

    Args:
        model: changed in place.
        weights: those of its initializers that may be quantised, by name; others stay as they are.
        precision: `int8` or `int4`, of matrices; tables have 8 bits in both.

    Returns:
        What the graph needs in place of the weights that it no longer has.
    """
    graph, parts = model.graph, _Parts(model.graph)
    for node in list(graph):
        name = _name(node, {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type))
        if name not in weights or len(weights[name].shape) != 2 or name.endswith(_POSITIONS):
            continue
        weight = weights[name]
        if node.op_type == "MatMul" and weight.transposed:
            replacement = _product(node, name, weight, precision, parts)
        elif node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
            replacement = [_nbits(node, weight.shape[::-1], 8, ROW_BLOCK, parts.add(row_parts(name, weight)))]
        elif node.op_type == "Gather":
            replacement = _lookup(node, weight, parts.add(row_parts(name, weight)))
        else:
            continue
        ir.convenience.replace_nodes_and_values(graph, node, [node], replacement, node.outputs, replacement[-1].outputs)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and name in weights]:
        del graph.initializers[name]
    model.opset_imports[_CONTRIB] = 1
    return parts.found


def _name(node: ir.Node, index: int | None) -> str:
    """Of an input of a node; empty where it has none."""
    value = None if index is None else node.inputs[index]
    return "" if value is None else str(value.name)


class _Parts:
    """The parts that a graph needs, each one initializer of it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.found: dict[str, Part] = {}

    def add(self, parts: Sequence[Part]) -> list[ir.Value]:
        """The initializers of parts, made when they are first asked for."""
        for part in parts:
            if part.name not in self.found:
                self.found[part.name] = part
                dtype = ir.TensorType(ir.DataType.from_short_name(part.dtype.lower()))
                value = ir.Value(name=part.name, shape=ir.Shape(part.shape), type=dtype)
                self._graph.initializers[part.name] = value
        return [self._graph.initializers[part.name] for part in parts]


def _product(node: ir.Node, name: str, weight: Weight, precision: str, parts: _Parts) -> list[ir.Node]:
    if precision == INT4:
        return [_nbits(node, weight.shape, 4, BLOCK, parts.add(block_parts(name, weight)))]
    inputs = [node.inputs[0], *parts.add(column_parts(name, weight))]
    return [ir.node("DynamicQuantizeMatMul", inputs, domain=_CONTRIB)]


def _nbits(node: ir.Node, shape: tuple[int, ...], bits: int, block: int, parts: list[ir.Value]) -> ir.Node:
    """A product with a matrix of `shape`, in and out, in blocks."""
    attributes = {"K": shape[0], "N": shape[1], "bits": bits, "block_size": block, "accuracy_level": _INT8_COMPUTE}
    return ir.node("MatMulNBits", [node.inputs[0], *parts], attributes=attributes, domain=_CONTRIB)


def _lookup(node: ir.Node, weight: Weight, parts: list[ir.Value]) -> list[ir.Node]:
    """Rows of a table: `(values - 128) * scales`, without the zeros that filled a row up."""
    width = weight.shape[1]
    constants = {
        "middle": ir.tensor([float(_MIDDLE_8)], dtype=ir.DataType.FLOAT),
        "last": ir.tensor([-1], dtype=ir.DataType.INT64),
        "joined": ir.tensor([0, 0, -1], dtype=ir.DataType.INT64),
        "start": ir.tensor([0], dtype=ir.DataType.INT64),
        "end": ir.tensor([width], dtype=ir.DataType.INT64),
    }
    nodes = {name: ir.node("Constant", [], attributes={"value": value}) for name, value in constants.items()}
    out = {name: constant.outputs[0] for name, constant in nodes.items()}
    made = list(nodes.values())

    def add(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        made.append(ir.node(op_type, list(inputs), attributes=attributes))
        return made[-1].outputs[0]

    values = add("Cast", add("Gather", parts[0], node.inputs[1], axis=0), to=int(ir.DataType.FLOAT))
    scales = add("Unsqueeze", add("Gather", parts[1], node.inputs[1], axis=0), out["last"])
    rows = add("Reshape", add("Mul", add("Sub", values, out["middle"]), scales), out["joined"])
    if width % ROW_BLOCK:
        add("Slice", rows, out["start"], out["end"], out["last"])
    return made

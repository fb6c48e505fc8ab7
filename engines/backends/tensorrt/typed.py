"""A graph of the bundle in half precision, as a strongly typed network wants it: every type is written down in the graph.

The rules are those of autocast. Products run in half precision, reductions and trigonometry in float32, and whatever lies
between takes the wider type of its inputs; so rotary angles, attention probabilities and the scorer's network stay
float32 while activations, weights and the KV cache are halved.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from foveate.engines.format import precisions
from foveate.engines.format.spec import GraphSpec

HALVES = {name: ir.DataType[precisions.COMPUTED[name].upper()] for name in precisions.HALVES}

_PRODUCTS = frozenset({"Attention", "Conv", "Gemm", "MatMul", "TensorScatter"})
_EXACT = frozenset(
    {"Cos", "Exp", "Log", "Pow", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sin", "Softmax", "Sqrt"}
)
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


def to_precision(model: ir.Model, spec: GraphSpec, precision: str) -> None:
    """Rewrites a float32 graph in place; weights in files of their own are halved, constants in the graph follow their use.

    Args:
        model: the graph, weights as external tensors that are read when they are written or asked for.
        spec: says which inputs and outputs may be halved.
        precision: `fp32` leaves it as it is; `fp16`, `bf16`.
    """
    if precision in HALVES:
        ShapeInferencePass()(model)
        narrowable = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.narrowable}
        _Typing(model.graph, narrowable, HALVES[precision]).apply()


class _Typing:
    """One pass over a graph in execution order."""

    def __init__(self, graph: ir.Graph, narrowable: Set[str], half: ir.DataType) -> None:
        self._graph = graph
        self._narrowable = narrowable
        self._half = half
        self._casts: dict[tuple[str, ir.DataType], ir.Value] = {}

    def apply(self) -> None:
        self._halve_inputs()
        for node in list(self._graph):
            if any(_is_float(value) for value in (*node.inputs, *node.outputs)):
                self._type(node)
        self._cast_outputs()

    def _halve_inputs(self) -> None:
        for value in self._graph.inputs:
            if _is_float(value) and value.name in self._narrowable:
                value.dtype = self._half
        for value in self._graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and _is_float(value):
                value.const_value = _halved(value.const_value, self._half)
                value.dtype = self._half

    def _type(self, node: ir.Node) -> None:
        wanted = self._wanted(node)
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value.dtype != wanted:
                node.replace_input_with(index, self._as_type(node, value, wanted))
        for value in node.outputs:
            if _is_float(value):
                value.dtype = wanted

    def _wanted(self, node: ir.Node) -> ir.DataType:
        """The type in which a node computes."""
        if node.op_type == "Cast" or node.op_type in _EXACT:
            return ir.DataType.FLOAT
        types = [value.dtype for value in self._deciding(node)]
        if node.op_type in _PRODUCTS:
            return self._half if self._half in types else ir.DataType.FLOAT
        return self._half if types and ir.DataType.FLOAT not in types else ir.DataType.FLOAT

    def _deciding(self, node: ir.Node) -> Iterator[ir.Value]:
        """The inputs whose type counts: constants of the graph follow the others, and so does the scale of a norm."""
        for value in node.inputs[:1] if node.op_type in _NORMS else node.inputs:
            if value is not None and _is_float(value) and not self._is_constant(value):
                yield value

    def _is_constant(self, value: ir.Value) -> bool:
        producer = value.producer()
        inline = value.is_initializer() and not isinstance(value.const_value, ir.ExternalTensor | ir.LazyTensor)
        return inline or (producer is not None and producer.op_type == "Constant")

    def _as_type(self, node: ir.Node, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        key = (value.name or "", wanted)
        if key not in self._casts:
            cast = ir.node("Cast", [value], attributes={"to": wanted}, name=f"{value.name}.{wanted.name}")
            (output,) = cast.outputs
            output.name, output.dtype, output.shape = cast.name, wanted, value.shape
            self._graph.insert_before(node, cast)
            self._casts[key] = output
        return self._casts[key]

    def _cast_outputs(self) -> None:
        for index, value in enumerate(self._graph.outputs):
            wanted = self._half if value.name in self._narrowable else ir.DataType.FLOAT
            if _is_float(value) and value.dtype != wanted:
                self._graph.outputs[index] = self._renamed(value, wanted)

    def _renamed(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """A cast that takes the output's name; the value itself gets another one."""
        cast = ir.node("Cast", [value], attributes={"to": wanted})
        (output,) = cast.outputs
        output.name, output.dtype, output.shape = value.name, wanted, value.shape
        value.name = f"{value.name}.{value.dtype}"
        self._graph.append(cast)
        return output


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (ir.DataType.FLOAT, *HALVES.values())


def _halved(tensor: ir.ExternalTensor, half: ir.DataType) -> ir.LazyTensor:
    """The weight in half precision, converted when it is read: a large model is never in memory as a whole."""
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(half.numpy()), name=tensor.name),
        dtype=half,
        shape=tensor.shape,
        name=tensor.name,
    )

"""Operators of ONNX Runtime's own in place of standard ones, in graphs that nothing else runs."""

from __future__ import annotations

import onnx_ir as ir

_CONTRIB = "com.microsoft"
_HEADS_LAST = (0, 2, 1, 3)
"""Of `[batch, heads, tokens, head_dim]` to `[batch, tokens, heads, head_dim]`, and back."""


def fuse_attention(model: ir.Model) -> int:
    """Attention without a mask becomes `MultiHeadAttention`, which never holds the scores of all pairs of tokens: for 3,456
    patches and 16 heads 764 MB less, at the same speed.

    Args:
        model: changed in place; its values still have the shapes of the trace.

    Returns:
        How many were replaced.
    """
    found = [node for node in model.graph if node.op_type == "Attention" and len(node.inputs) == 3 and len(node.outputs) == 1]
    for node in found:
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
            raise ValueError(f"the query of '{node.name}' has shape {shape}, expected [batch, heads, tokens, head_dim]")
        made = _multi_head(node, shape[1])
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], made, node.outputs, made[-1].outputs)
    if found:
        model.opset_imports[_CONTRIB] = 1
    return len(found)


def _multi_head(node: ir.Node, heads: int) -> list[ir.Node]:
    """ONNX Runtime takes the transposes out again, against those of the trace."""
    joined = ir.node("Constant", [], attributes={"value": ir.tensor([0, 0, -1], dtype=ir.DataType.INT64)})
    split = ir.node("Constant", [], attributes={"value": ir.tensor([0, 0, heads, -1], dtype=ir.DataType.INT64)})
    made = [joined, split]

    def add(op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: object) -> ir.Value:
        made.append(ir.node(op_type, list(inputs), attributes=attributes, domain=domain))  # type: ignore[arg-type]
        return made[-1].outputs[0]

    rows = [add("Reshape", add("Transpose", value, perm=_HEADS_LAST), joined.outputs[0]) for value in node.inputs]
    scale = {"scale": node.attributes["scale"].as_float()} if "scale" in node.attributes else {}
    attended = add("MultiHeadAttention", *rows, domain=_CONTRIB, num_heads=heads, **scale)
    add("Transpose", add("Reshape", attended, split.outputs[0]), perm=_HEADS_LAST)
    return made

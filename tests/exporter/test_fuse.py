"""Fused operators compute what the standard ones do, and hold less."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engines import GraphSpec, TensorSpec
from foveate.exporter.fuse import fuse_attention, fuse_rotation
from foveate.exporter.graphs import GraphModule
from foveate.exporter.modules import rotate
from foveate.exporter.trace import trace_graph


def attention(heads: int, head_dim: int, masked: bool = False, **attributes: float) -> ir.Model:
    """`y` = attention of `q`, `k`, `v` `[batch, heads, tokens, head_dim]`, with a mask or without."""
    shape = ir.Shape(["batch", heads, "tokens", head_dim])
    inputs = [ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT)) for name in "qkv"]
    inputs += [ir.Value(name="mask", type=ir.TensorType(ir.DataType.BOOL))] * masked
    node = ir.node("Attention", inputs, attributes=attributes)
    output = node.outputs[0]
    output.name, output.shape, output.type = "y", shape, ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 23}), ir_version=10)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds)
    return np.asarray(found)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70), st.sampled_from([8, 32, 80]), st.sampled_from([None, 0.3]))
def test_attention_stays_what_it_is(batch: int, heads: int, tokens: int, head_dim: int, scale: float | None) -> None:
    model = attention(heads, head_dim, **({} if scale is None else {"scale": scale}))
    assert fuse_attention(model) == 1
    assert [node.op_type for node in model.graph if node.domain] == ["MultiHeadAttention"]
    q, k, v = torch.randn(3, batch, heads, tokens, head_dim, generator=torch.Generator().manual_seed(tokens))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    found = run(model, {"q": q.numpy(), "k": k.numpy(), "v": v.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_heads_that_are_not_known_are_an_error() -> None:
    model = attention(2, 8)
    model.graph.inputs[0].shape = None
    with pytest.raises(ValueError, match="expected"):
        fuse_attention(model)


def test_attention_with_a_mask_stays() -> None:
    model = attention(2, 8, masked=True)
    assert fuse_attention(model) == 0
    assert [node.op_type for node in model.graph] == ["Attention"]


class Rotation(torch.nn.Module):
    """Twice, as of queries and keys by the same angles."""

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        return rotate(rotate(x, angles), angles)


def rotation(heads: int, head_dim: int, batched: bool = True) -> ir.Model:
    """`y` = `x [batch, tokens, heads, head_dim]` rotated by `angles`, with a batch of their own or without."""
    axes = ("batch", "sequence") if batched else ("sequence",)
    inputs = (
        TensorSpec("x", "float32", ("batch", "sequence", heads, head_dim)),
        TensorSpec("angles", "float32", (*axes, head_dim // 2)),
    )
    spec = GraphSpec("rotation", "graphs/rotation.onnx", inputs, (TensorSpec("y", "float32", inputs[0].shape),))
    return trace_graph(GraphModule(spec, Rotation()), set())


@settings(max_examples=5)
@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([(2, 8), (3, 80), (12, 128)]), st.integers(0, 99))
def test_rotation_stays_what_it_is(batch: int, tokens: int, sizes: tuple[int, int], seed: int) -> None:
    model = rotation(*sizes)
    assert fuse_rotation(model) == 2
    assert not {node.op_type for node in model.graph} & {"Split", "Mul", "Concat"}
    random = torch.Generator().manual_seed(seed)
    x, angles = (
        torch.randn(batch, tokens, *sizes, generator=random),
        9 * torch.randn(batch, tokens, sizes[1] // 2, generator=random),
    )
    found = run(model, {"x": x.numpy(), "angles": angles.numpy()})
    np.testing.assert_allclose(found, Rotation()(x, angles).numpy(), atol=1e-5)


def test_angles_that_the_batch_shares_stay() -> None:
    model = rotation(2, 8, batched=False)
    assert fuse_rotation(model) == 0
    assert "RotaryEmbedding" not in {node.op_type for node in model.graph}

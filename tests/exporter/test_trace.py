"""The trace of a vision graph with an input and dimensions of its own: what a family alone knows of."""

from __future__ import annotations

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass

from foveate.engines import GraphSpec, TensorSpec
from foveate.engines.backends.tensorrt.typed import to_precision
from foveate.exporter.graphs import GraphModule
from foveate.exporter.trace import trace_graph

SPEC = GraphSpec(
    "vision",
    "graphs/vision.onnx",
    (
        TensorSpec("pixel_values", "float32", ("frames", "patches", 8)),
        TensorSpec("window_weights", "float32", ("windows", "visual_tokens")),
        TensorSpec("window_sizes", "int64", ("windows", "edges")),
    ),
    (TensorSpec("visual_embeds", "float32", ("visual_tokens", 8), "device", narrowable=True),),
)


class Windows(torch.nn.Module):
    """Splits its own dimensions, as a tower that merges patches does."""

    def forward(self, pixels: torch.Tensor, weights: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        pairs = weights.reshape(-1, 2, weights.shape[1]).sum(1).T @ sizes.reshape(-1, 2, sizes.shape[1]).sum(1).float()
        return pairs.sum(1, keepdim=True) * pixels.sum((0, 1))


def traced() -> ir.Model:
    return trace_graph(GraphModule(SPEC, Windows()), set())


def test_a_family_has_symbols_of_its_own() -> None:
    shapes = [value.shape for value in traced().graph.inputs]
    assert [[isinstance(size, int) for size in shape or ()] for shape in shapes] == [
        [False, False, True],
        [False] * 2,
        [False] * 2,
    ]


def test_its_input_stays_float32_where_the_spec_does_not_let_it_be_narrowed() -> None:
    model = traced()
    ShapeInferencePass()(model)
    to_precision(model, SPEC, "bf16")
    types = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    assert types == {
        "pixel_values": ir.DataType.FLOAT,
        "window_weights": ir.DataType.FLOAT,
        "window_sizes": ir.DataType.INT64,
        "visual_embeds": ir.DataType.BFLOAT16,
    }

"""Quantised weights against the arithmetic they stand for, in the operators that compute with them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate.engines import DECODER_PREFILL, Bundle, OptionError
from foveate.exporter.precision import FP32_GRAPHS, plan_precisions
from foveate.exporter.quantise import (
    BLOCK,
    ROW_BLOCK,
    Part,
    Quantised,
    quantise_blocks,
    quantise_columns,
    quantise_graph,
    quantise_rows,
)
from foveate.exporter.weights import write_weights

matrices = st.tuples(st.integers(1, 70), st.integers(1, 9), st.integers(0, 2**32 - 1))


def random(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return values * torch.rand(columns, generator=generator) * (torch.rand(rows, columns, generator=generator) > 0.1)


@given(matrices)
def test_columns_are_at_most_half_a_step_away(size: tuple[int, int, int]) -> None:
    weight = random(*size)
    values, scales, _ = quantise_columns(weight)
    assert values.dtype == torch.int8
    assert ((values * scales - weight).abs() <= scales / 2 * 1.001).all()


@given(matrices)
def test_rows_are_at_most_half_a_step_away(size: tuple[int, int, int]) -> None:
    table = random(size[1], size[0], size[2])
    values, scales, _ = quantise_rows(table)
    assert values.dtype == torch.uint8
    assert values.shape == (size[1], -(-size[0] // ROW_BLOCK), ROW_BLOCK)
    blocks = ((values.float() - 128) * scales[..., None]).flatten(1)
    assert ((blocks[:, : size[0]] - table).abs() <= scales.repeat_interleave(ROW_BLOCK, 1)[:, : size[0]] / 2 * 1.001).all()
    assert (blocks[:, size[0] :] == 0).all()


def halves(pairs: torch.Tensor) -> torch.Tensor:
    """Numbers of 4 bits, of which each byte has two."""
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2).float()


def unpacked(found: Quantised, size: int) -> torch.Tensor:
    """`[in, out]` of 4-bit blocks."""
    values, scales, zeros = found
    assert zeros is not None
    centred = halves(values) - halves(zeros)[:, : scales.shape[1], None]
    return (centred * scales[..., None]).flatten(1)[:, :size].T


@settings(max_examples=500)
@given(st.tuples(st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32 - 1)), st.sampled_from([32, BLOCK]))
def test_blocks_are_at_most_half_a_step_away(size: tuple[int, int, int], block: int) -> None:
    weight = random(*size)
    found = quantise_blocks(weight, block)
    blocks = -(-size[0] // block)
    assert found.values.shape == (size[1], blocks, block // 2)
    assert found.zeros is not None
    assert found.zeros.shape == (size[1], -(-blocks // 2))
    away = (unpacked(found, size[0]) - weight).abs()
    assert (away <= found.scales.repeat_interleave(block, 1)[:, : size[0]].T / 2 * 1.001).all()
    # No step is wider than the range of its block, with 0 in it, in 15 parts.
    padded = torch.nn.functional.pad(weight.T, (0, -size[0] % block)).unflatten(1, (-1, block))
    reach = padded.amax(-1).clamp(min=0) - padded.amin(-1).clamp(max=0)
    assert (found.scales <= torch.where(reach == 0, 1, reach / 15) * 1.001).all()


@dataclass(frozen=True)
class Plain:
    """A weight that is there already."""

    values: torch.Tensor
    transposed: bool = True
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def chunks(self) -> Iterator[torch.Tensor]:
        yield self.values


def model_of(op_type: str, weight: Plain, order: tuple[int, int], **attributes: int) -> ir.Model:
    """One operator on an input and a weight; `order` is where each of the two stands."""
    dtype = ir.DataType.INT64 if op_type == "Gather" else ir.DataType.FLOAT
    x = ir.Value(name="x", shape=ir.Shape(["rows"] if op_type == "Gather" else ["rows", weight.shape[order[1] != 1]]))
    x.type = ir.TensorType(dtype)
    w = ir.Value(name="w", shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT))
    pair = [x, w] if order == (0, 1) else [w, x]
    node = ir.node(op_type, pair, attributes=attributes)
    output = node.outputs[0]
    output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [output], nodes=[node], opset_imports={"": 21})
    graph.initializers["w"] = w
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, parts: dict[str, Part], folder: Path, x: np.ndarray) -> np.ndarray:
    """The quantised graph in ONNX Runtime, its weights read from the file that an export writes."""
    stored = write_weights(parts, folder / "w.safetensors")
    for name, tensor in stored.items():
        kind = {"F32": np.float32, "I8": np.int8, "U8": np.uint8}[tensor.dtype]
        values = np.fromfile(tensor.file, kind, tensor.size_bytes // np.dtype(kind).itemsize, offset=tensor.offset)
        model.graph.initializers[name].const_value = ir.tensor(values.reshape(tensor.shape), name=name)
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


@settings(max_examples=10)
@given(st.sampled_from([32, 96, 160]), st.sampled_from([16, 24]), st.sampled_from(["int8", "int4"]), st.integers(0, 99))
def test_products(tmp_path_factory: pytest.TempPathFactory, size: int, columns: int, precision: str, seed: int) -> None:
    weight = random(size, columns, seed)
    model = model_of("MatMul", Plain(weight), (0, 1))
    parts = quantise_graph(model, {"w": Plain(weight)}, precision)  # type: ignore[dict-item]
    assert "w" not in model.graph.initializers
    x = np.random.default_rng(seed).standard_normal((5, size), dtype=np.float32)
    found = run(model, parts, tmp_path_factory.mktemp("product"), x)
    columns_of = quantise_columns(weight)
    exact = columns_of.values * columns_of.scales if precision == "int8" else unpacked(quantise_blocks(weight), size)
    expected = x @ exact.numpy()
    step = (x.max() - x.min()) / 255  # activations in 8 bits
    assert np.abs(found - expected).max() <= step * exact.abs().sum(dim=0).max().item() * 0.51 + 1e-4


def test_tables(tmp_path: Path) -> None:
    table = random(40, 96, 3)
    values, scales, _ = quantise_rows(table)
    exact = ((values.float() - 128) * scales[..., None]).flatten(1)[:, :96]
    rows = model_of("Gather", Plain(table, transposed=False), (1, 0), axis=0)
    parts = quantise_graph(rows, {"w": Plain(table, transposed=False)}, "int8")  # type: ignore[dict-item]
    ids = np.array([[3, 0], [39, 3]])
    rows.graph.inputs[0].shape = ir.Shape([2, 2])
    np.testing.assert_allclose(run(rows, parts, tmp_path, ids), exact[ids], rtol=1e-6)
    head = model_of("Gemm", Plain(table, transposed=False), (0, 1), transB=1)
    head.graph.inputs[0].shape = ir.Shape(["rows", 96])
    again = quantise_graph(head, {"w": Plain(table, transposed=False)}, "int4")  # type: ignore[dict-item]
    assert again.keys() == parts.keys()  # one table for both
    x = np.random.default_rng(0).standard_normal((3, 96), dtype=np.float32)
    found = run(head, again, tmp_path, x)
    step = np.abs(x).max() / 127
    assert np.abs(found - x @ exact.numpy().T).max() <= step * exact.abs().sum(dim=1).max().item()


def test_what_is_no_weight_stays() -> None:
    model = model_of("MatMul", Plain(torch.ones(4, 4)), (0, 1))
    assert quantise_graph(model, {}, "int8") == {}
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert "w" in model.graph.initializers


def test_plans() -> None:
    assert tuple(FP32_GRAPHS) == ("vision", "vision_standard", "score", "embed", "decoder", "decoder_standard")
    mixed = plan_precisions("int4", {"vision": "fp32"})
    whole = {"vision": "fp32", "vision_standard": "fp32", "score": "fp32"}
    assert mixed == {**whole, "embed": "int8", "decoder": "int4", DECODER_PREFILL: "int8"}


@pytest.mark.parametrize(
    ("precision", "parts", "message"),
    [
        ("fp16", {}, r"precision 'fp16' is not one of a bundle, .* export in fp32 and build them in that precision\."),
        ("int8", {"vision": "int4"}, r"precision 'int4' of part 'vision' is not supported. Choose one of vision: fp32, int8;"),
        ("int8", {"score": "int8"}, r"of part 'score' is not supported"),
    ],
)
def test_plans_that_make_no_sense(precision: str, parts: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_precisions(precision, parts)


@pytest.fixture(scope="module", params=["int8", "int4"])
def bundle(request: pytest.FixtureRequest, reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    checkpoint = Path(__file__).parents[2] / "models" / "qwen2-vl-tiny"
    folder = tmp_path_factory.mktemp("quantised") / "x.bundle"
    options = foveate.ExportOptions(request.param, scorer=checkpoint / "scorer.safetensors")
    result = foveate.export(checkpoint, folder, options)
    assert result.parity is not None
    assert result.parity.passed
    return Bundle.open(folder)


def test_a_quantised_bundle_answers_like_the_whole_one(bundle: Bundle, reference_bundle: Path) -> None:
    from models.scenes.dataset import sample
    from models.scenes.render import render

    assert "decoder_standard" not in bundle.manifest.graphs
    vision = ir.load(bundle.file(bundle.graph("vision").file))
    assert {node.op_type for node in vision.graph} & {"Attention", "MultiHeadAttention"} == {"MultiHeadAttention"}
    for name in bundle.manifest.graphs:  # `score` is not quantised
        rotated = {node.op_type for node in ir.load(bundle.file(bundle.graph(name).file)).graph} & {"RotaryEmbedding", "Cos"}
        assert rotated == {"score": {"Cos"}, "embed": set()}.get(name, {"RotaryEmbedding", "Cos"})
    assert (DECODER_PREFILL in bundle.manifest.graphs) == (bundle.graph("decoder").precision == "int4")
    assert bundle.manifest.precision in ("int8", "vision int8, decoder int4")
    assert {name: graph.precision for name, graph in bundle.manifest.graphs.items()} == plan_precisions(
        bundle.graph("decoder").precision, {}
    )
    size, whole = (sum(file.stat().st_size for file in path.rglob("*.safetensors")) for path in (bundle.path, reference_bundle))
    assert size < 0.4 * whole
    pipe, reference = foveate.load(bundle.path), foveate.load(reference_bundle)
    requests = []
    for index in range(12):
        scene, (question,) = sample("validation", 0, index)
        requests.append(foveate.Request.ask(question.text, [render(scene)], keep=0.5, max_new_tokens=8))
    expected = [reference.generate(request).text for request in requests]
    alone = [pipe.generate(request).text for request in requests]
    together = [answer.text for answer in pipe.generate_batch(requests)]  # prompts of different lengths
    for found in (alone, together):
        assert sum(map(operator.eq, found, expected)) >= 10


def test_engines_are_built_of_whole_bundles_only(bundle: Bundle) -> None:
    with pytest.raises(foveate.FoveateError, match=r"has no graph 'decoder_standard'.* for ONNX Runtime's CPU: export in fp32"):
        bundle.graph("decoder_standard")

"""Graphs in half precision: their types, and their numbers on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from foveate.engines import Bundle
from foveate.engines.backends.tensorrt.network import lower
from foveate.engines.backends.tensorrt.precision import typed_spec
from foveate.engines.format.dtypes import host_dtype

GRAPHS = ("vision_standard", "score", "embed", "decoder_standard")
TYPES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16, "float32": onnx.TensorProto.FLOAT,
         "int64": onnx.TensorProto.INT64}  # fmt: skip
CAPACITY = 32


@pytest.fixture(scope="module")
def scored_bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle, verify=False)


@pytest.fixture(scope="module", params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lowered(bundle: Bundle, graph: str, precision: str, folder: Path) -> Path:
    path = folder / f"{graph}.{precision}.onnx"
    spec = bundle.graph(graph)
    lower(bundle.file(spec.file), spec, precision, {"kv_capacity": CAPACITY}, path)
    return path


def feeds_of(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    """Feeds in float32 of a small request that uses every input."""
    random = np.random.default_rng(0)
    sizes = {"frames": 1, "patches": 16, "visual_tokens": 6, "kept_tokens": 4, "total_tokens": 14, "instruction_tokens": 5,
             "batch": 1, "sequence": 9, "cache_tokens": 9, "kv_capacity": CAPACITY}  # fmt: skip
    indices = {
        "patch_positions": np.indices((4, 4)).reshape(2, -1).T,
        "visual_indices": np.arange(3, 9),
        "instruction_indices": np.arange(9, 14),
        "keep_indices": np.array([0, 2, 3, 5]),
        "placeholder_indices": np.array([1, 2, 3, 4]),
        "last_indices": np.array([8]),
        "write_indices": np.array([0]),
        "cache_indices": np.arange(9),
    }
    feeds = {}
    for tensor in bundle.graph(graph).inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in tensor.shape]
        if tensor.dtype == "float32":
            feeds[tensor.name] = random.standard_normal(shape).astype(np.float32)
        elif tensor.name == "neighbour_indices":
            feeds[tensor.name] = random.integers(0, sizes["visual_tokens"] + 1, shape)
        else:
            feeds[tensor.name] = indices.get(tensor.name, random.integers(0, 50, shape))
    return feeds


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_file_has_the_types_of_the_typed_spec(scored_bundle: Bundle, graph: str, precision: str, tmp_path: Path) -> None:
    model = onnx.load(lowered(scored_bundle, graph, precision, tmp_path), load_external_data=False)
    spec = typed_spec(scored_bundle.graph(graph), precision, {"kv_capacity": CAPACITY})
    onnx.checker.check_model(str(tmp_path / f"{graph}.{precision}.onnx"), full_check=True)
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    assert set(values) == {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    for tensor in (*spec.inputs, *spec.outputs):
        assert values[tensor.name].elem_type == TYPES[tensor.dtype], tensor
        assert [d.dim_param or d.dim_value for d in values[tensor.name].shape.dim] == list(tensor.shape)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_of_the_bundle_are_halved_and_products_use_them_so(
    scored_bundle: Bundle, graph: str, precision: str, tmp_path: Path
) -> None:
    half = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    model = ir.load(lowered(scored_bundle, graph, precision, tmp_path))
    weights = {v.name for v in ir.load(scored_bundle.file(scored_bundle.graph(graph).file)).graph.initializers.values()
               if isinstance(v.const_value, ir.ExternalTensor)}  # fmt: skip
    assert weights
    for name in weights:
        value = model.graph.initializers[name]
        assert value.dtype == half
        for node, _ in value.uses():
            assert node.op_type != "Cast", f"{name} would be converted in every run"


def halved_feeds(bundle: Bundle, graph: str, feeds: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    spec = typed_spec(bundle.graph(graph), precision, {"kv_capacity": CAPACITY})
    return {tensor.name: feeds[tensor.name].astype(host_dtype(tensor.dtype)) for tensor in spec.inputs}


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    for name, array in expected.items():
        scale = max(1e-3, float(np.abs(array).max()))
        assert np.abs(got[name].astype(np.float64) - array).max() <= tolerance * scale, name


def test_fp16_gives_the_numbers_of_fp32(scored_bundle: Bundle, graph: str, tmp_path: Path) -> None:
    feeds = feeds_of(scored_bundle, graph)
    expected = run(scored_bundle.file(scored_bundle.graph(graph).file), feeds)
    path = lowered(scored_bundle, graph, "fp16", tmp_path)
    assert_close(run(path, halved_feeds(scored_bundle, graph, feeds, "fp16")), expected, 0.01)


def test_bf16_gives_the_numbers_of_fp32(scored_bundle: Bundle, graph: str, tmp_path: Path) -> None:
    """ONNX Runtime's CPU has no bf16, the reference implementation of ONNX has."""
    feeds = feeds_of(scored_bundle, graph)
    expected = run(scored_bundle.file(scored_bundle.graph(graph).file), feeds)
    model = ReferenceEvaluator(onnx.load(lowered(scored_bundle, graph, "bf16", tmp_path)))
    outputs = model.run(None, halved_feeds(scored_bundle, graph, feeds, "bf16"))
    assert_close(dict(zip(model.output_names, outputs, strict=True)), expected, 0.04)


def test_what_the_host_reads_stays_float32(scored_bundle: Bundle) -> None:
    outputs = {t.name: t.dtype for g in GRAPHS for t in typed_spec(scored_bundle.graph(g), "bf16", {}).outputs}
    assert {name for name, dtype in outputs.items() if dtype == "float32"} == {"logits", "scores", "attention"}


def test_fp32_is_left_as_it_is(scored_bundle: Bundle, graph: str, tmp_path: Path) -> None:
    spec = scored_bundle.graph(graph)
    assert typed_spec(spec, "fp32", {}) == spec
    feeds = feeds_of(scored_bundle, graph)
    expected = run(scored_bundle.file(spec.file), feeds)
    got = run(lowered(scored_bundle, graph, "fp32", tmp_path), feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)

"""The exported bundle: its graphs, its weights, and an answer through all of it as transformers gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveate.engines import Bundle, GraphSpec, open_decoder, open_session, reset_peak, resident_bytes
from foveate.engines.format.processors.qwen2_vl import patch_positions
from foveate.exporter import ExportResult
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.decoder import TextDecoder
from foveate.exporter.families import read_family
from foveate.exporter.graphs import text_graphs
from foveate.exporter.precision import FP32_GRAPHS
from foveate.exporter.safetensors import read_header
from foveate.exporter.trace import save_graph, trace_graph

NEW_TOKENS = 8
GRAPHS = FP32_GRAPHS
FUSED = {"vision": {"MultiHeadAttention", "RotaryEmbedding"}, "decoder": {"GroupQueryAttention", "RotaryEmbedding"}}
"""Graph -> operators that hold no scores of all pairs of tokens, and the rotation."""


def load_graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.file(bundle.graph(name).file), load_external_data=False)


def write_embed_graph(checkpoint: Path, bundle: Bundle, folder: Path) -> Path:
    """Traces the cheapest graph once more."""
    (weights,) = bundle.path.rglob("*.safetensors")
    language_model = TextDecoder(read_family(Checkpoint.open(checkpoint)).decoder)
    graph = next(graph for graph in text_graphs(language_model, None) if graph.spec.name == "embed")
    stored = read_header(weights)
    save_graph(trace_graph(graph, stored.keys()), graph.spec, stored, folder / "embed.onnx")
    return folder / "embed.onnx"


def run(bundle: Bundle, graph: str, **feeds: np.ndarray) -> np.ndarray:
    (output,) = open_session(bundle, graph).run(feeds).values()
    return output


def test_every_graph_passes_parity(tiny_export: ExportResult) -> None:
    assert tiny_export.parity is not None
    assert {row.graph for row in tiny_export.parity.rows} == set(GRAPHS)
    assert tiny_export.parity.passed


def test_published_style_checkpoint_passes_parity(published_bundle: Bundle) -> None:
    assert set(published_bundle.manifest.graphs) == set(GRAPHS)


@pytest.mark.parametrize("graph", ["decoder", "decoder_standard"])
def test_greedy_answer_is_that_of_transformers(graph: str, checkpoint_folder: Path, tiny_bundle: Bundle) -> None:
    constants = tiny_bundle.manifest.processor
    pixels = np.random.default_rng(0).integers(0, 255, (224, 280, 3), dtype=np.uint8)
    image = Qwen2VLImageProcessorPil(min_pixels=constants["min_pixels"], max_pixels=constants["max_pixels"])(
        Image.fromarray(pixels), return_tensors="pt"
    )
    _, height, width = image["image_grid_thw"][0].tolist()
    visual_tokens = height * width // 4
    start = json.loads((checkpoint_folder / "config.json").read_text())["vision_start_token_id"]
    ids = np.array([[10, start, *[constants["image_token_id"]] * visual_tokens, 20, 30, 40]])
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "mm_token_type_ids": torch.from_numpy(ids == constants["image_token_id"]).int(),
        "image_grid_thw": image["image_grid_thw"],
    }
    model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint_folder, dtype=torch.float32)
    generated = model.generate(
        **inputs, pixel_values=image["pixel_values"], max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
    expected = generated[0, ids.shape[1] :].tolist()
    positions, delta = model.model.get_rope_index(**inputs)

    visual = run(
        tiny_bundle,
        "vision",
        pixel_values=image["pixel_values"].numpy()[None],
        patch_positions=patch_positions(height, width, merge_size=2),
    )
    places = np.flatnonzero(ids == constants["image_token_id"])
    keep = np.arange(visual_tokens)
    embeds = run(tiny_bundle, "embed", input_ids=ids, visual_embeds=visual, keep_indices=keep, placeholder_indices=places)
    decoder = open_decoder([open_session(tiny_bundle, graph)], tiny_bundle.manifest.decoder)
    cache = decoder.new_cache(1, ids.shape[1] + NEW_TOKENS)
    answer = [decoder.prefill(cache, embeds, positions.numpy()).likeliest_token(0)]
    for length in range(ids.shape[1], ids.shape[1] + NEW_TOKENS - 1):
        none = np.zeros(0, dtype=np.int64)
        embeds = run(
            tiny_bundle,
            "embed",
            input_ids=np.array([answer[-1:]]),
            visual_embeds=np.zeros((0, visual.shape[1]), dtype=np.float32),
            keep_indices=none,
            placeholder_indices=none,
        )
        position = np.full((3, 1, 1), length + int(delta))
        answer.append(decoder.step(cache, embeds, position).likeliest_token(0))
    assert answer == expected


def symbols(graph: GraphSpec) -> set[str]:
    return {size for tensor in (*graph.inputs, *graph.outputs) for size in tensor.shape if isinstance(size, str)}


@pytest.mark.parametrize("name", GRAPHS)
def test_file_has_the_shapes_of_the_spec(name: str, tiny_bundle: Bundle) -> None:
    spec, model = tiny_bundle.graph(name), load_graph(tiny_bundle, name)

    def of_file(values: list[onnx.ValueInfoProto]) -> list[tuple[Any, ...]]:
        types = [(value.name, value.type.tensor_type) for value in values]
        return [
            (
                name,
                onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
                tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
            )
            for name, kind in types
        ]

    assert of_file(list(model.graph.input)) == [(tensor.name, tensor.dtype, tensor.shape) for tensor in spec.inputs]
    assert of_file(list(model.graph.output)) == [(tensor.name, tensor.dtype, tensor.shape) for tensor in spec.outputs]
    assert symbols(spec)


def test_dimensions_have_the_documented_names(tiny_bundle: Bundle) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text()
    for graph in tiny_bundle.manifest.graphs.values():
        assert not [symbol for symbol in symbols(graph) if symbol not in documented]


def test_only_graphs_for_the_cpu_need_operators_of_onnx_runtime(tiny_bundle: Bundle) -> None:
    for name in GRAPHS:
        model = load_graph(tiny_bundle, name)
        domains = {"", "com.microsoft"} if name in FUSED else {""}
        assert {node.domain for node in model.graph.node} == {entry.domain for entry in model.opset_import} == domains
        found = {node.op_type for node in model.graph.node}
        assert FUSED.get(name, {"Attention"} & found) == found & {"Attention", *FUSED["vision"], *FUSED["decoder"]}


def test_vision_holds_no_scores_of_all_pairs_of_patches(reference_bundle: Path) -> None:
    session = open_session(Bundle.open(reference_bundle, verify=False), "vision")
    positions = np.stack(np.meshgrid(np.arange(64), np.arange(128), indexing="ij"), axis=-1).reshape(-1, 2)
    feeds = {"pixel_values": np.zeros((1, 8192, 1176), dtype=np.float32), "patch_positions": positions}
    reset_peak()
    before, _ = resident_bytes()
    session.run(feeds)
    _, peak = resident_bytes()
    assert before is not None
    assert peak is not None
    assert peak - before < 4 * 8192**2  # one head's


def test_standard_attention_has_one_output_and_a_mask(tiny_bundle: Bundle) -> None:
    nodes = [node for node in load_graph(tiny_bundle, "decoder_standard").graph.node if node.op_type == "Attention"]
    assert len(nodes) == tiny_bundle.manifest.decoder.num_hidden_layers
    assert all(len(node.output) == 1 and len(node.input) == 4 for node in nodes)


def test_no_weight_is_transposed_at_load(tiny_bundle: Bundle) -> None:
    for name in GRAPHS:
        graph = load_graph(tiny_bundle, name).graph
        weights = {initializer.name for initializer in graph.initializer}
        assert not [node.name for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]


@pytest.mark.parametrize(("bundle_fixture", "tied"), [("tiny_bundle", True), ("published_bundle", False)])
def test_every_weight_is_stored_once(bundle_fixture: str, tied: bool, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(bundle_fixture)
    folder = Path(request.getfixturevalue("checkpoint_folder" if tied else "published_folder"))
    parameters = sum(tensor.numel() for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    (weights,) = bundle.path.rglob("*.safetensors")
    stored = read_header(weights)
    assert sum(tensor.size_bytes for tensor in stored.values()) == 4 * parameters
    assert ("language_model.lm_head.weight" in stored) is not tied
    graphs = [size for name in bundle.manifest.files if name.endswith(".onnx") and (size := bundle.file(name).stat().st_size)]
    assert sum(graphs) < 200_000


def test_graphs_agree_on_where_a_weight_lies(tiny_bundle: Bundle) -> None:
    (file,) = tiny_bundle.path.rglob("*.safetensors")
    stored, used = read_header(file), set()
    for name in GRAPHS:
        for initializer in load_graph(tiny_bundle, name).graph.initializer:
            if initializer.data_location == onnx.TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in initializer.external_data}
                weight = stored[initializer.name]
                assert place == {"location": file.name, "offset": str(weight.offset), "length": str(weight.size_bytes)}
                used.add(initializer.name)
    assert used == set(stored)


def test_manifest(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert (manifest.family, manifest.precision, manifest.scorer.kind) == ("qwen2_vl", "fp32", "attention")
    assert manifest.source.name == "tiny"
    assert (manifest.decoder.num_hidden_layers, manifest.decoder.head_dim, manifest.decoder.position_axes) == (2, 32, 3)


def test_same_checkpoint_gives_the_same_bytes(checkpoint_folder: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    file = write_embed_graph(checkpoint_folder, tiny_bundle, tmp_path)
    assert file.read_bytes() == tiny_bundle.file(tiny_bundle.graph("embed").file).read_bytes()


def test_files_name_no_path_of_this_machine(tiny_bundle: Bundle) -> None:
    for path in tiny_bundle.path.rglob("*"):
        if path.suffix in (".onnx", ".json"):
            content = path.read_bytes()
            assert b"site-packages" not in content
            assert str(Path.home()).encode() + b"/" not in content


def test_export_says_nothing(
    capfd: pytest.CaptureFixture[str], checkpoint_folder: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_embed_graph(checkpoint_folder, tiny_bundle, tmp_path)
    read_family(Checkpoint.open(checkpoint_folder)).reference()
    assert capfd.readouterr() == ("", "")

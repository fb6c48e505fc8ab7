"""The facts of LLaVA-OneVision: spellings of configs and weights, constants, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from foveate.engines import Bundle, ExportError, Range
from foveate.engines.backends.tensorrt.network import lower
from foveate.engines.builds.build import BuildOptions, build
from foveate.engines.builds.store import EngineStore
from foveate.exporter import ExportResult, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.families.llava_onevision import LlavaOnevision
from foveate.exporter.precision import FP32_GRAPHS
from foveate.runtime.shapes import plan_shapes
from tests.exporter.spellings import change, shard_weights, weights_of
from tests.tiny_llava_onevision import IMAGE_SIZE, PATCH_SIZE, PINPOINTS, save_tiny

PUBLISHED = {"vision_tower.": "vision_tower.vision_model."}
FIRST_OF_5 = {
    "vision_tower.": "model.vision_tower.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "image_newline": "model.image_newline",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
}
LATER_5 = {**FIRST_OF_5, "vision_tower.": "model.vision_tower."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied; not to be changed: see `copy`."""
    return save_tiny(tmp_path_factory.mktemp("llava_onevision") / "checkpoint", tied=False)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportResult:
    """With the parity check on."""
    return export(folder, folder.parent / "tiny.bundle")


def read(folder: Path) -> LlavaOnevision:
    family = read_family(Checkpoint.open(folder))
    assert isinstance(family, LlavaOnevision)
    return family


def test_every_graph_is_that_of_transformers(exported: ExportResult) -> None:
    assert exported.parity is not None
    assert exported.parity.passed
    assert {row.graph for row in exported.parity.rows} == set(FP32_GRAPHS)


def test_an_earlier_feature_layer_is_that_of_transformers(copy: Path) -> None:
    family = read(change(copy, vision_feature_layer=-2))
    result = export(copy, copy.parent / "earlier.bundle")
    assert result.parity is not None
    assert result.parity.passed
    assert "visual.vision_tower.encoder.layers.1.mlp.fc1.weight" not in weights_of(copy)
    assert family.vision.num_hidden_layers == 2


def test_the_vision_graph_takes_any_crops_and_any_of_their_patches(exported: ExportResult) -> None:
    inputs = {tensor.name: tensor.shape for tensor in Bundle.open(exported.bundle).graph("vision").inputs}
    assert inputs == {
        "pixel_values": ("frames", "patches", 3 * PATCH_SIZE**2),
        "patch_indices": ("frames", "patches"),
        "gather_indices": ("visual_tokens", 4),
        "gather_weights": ("visual_tokens", 4),
    }


def test_half_precision_keeps_the_weights_of_sums(exported: ExportResult, folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(exported.bundle)
    graph = bundle.graph("vision_standard")
    _, feeds = list(read(folder).vision_cases(np.random.default_rng(0)))[-1]
    outputs = []
    for precision in ("fp32", "fp16"):
        lower(bundle.file(graph.file), graph, precision, {}, tmp_path / f"{precision}.onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / f"{precision}.onnx"), providers=["CPUExecutionProvider"])
        types = {tensor.name: tensor.type for tensor in session.get_inputs()}
        assert types["gather_weights"] == types["pixel_values"] == "tensor(float)"
        outputs.append(session.run(None, feeds)[0])
    full, half = outputs
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, atol=0.02 * np.abs(full).max())


@pytest.mark.parametrize("rename", [PUBLISHED, FIRST_OF_5, LATER_5], ids=["published", "first of 5", "later 5"])
def test_every_spelling_gives_the_same_weights(rename: dict[str, str], folder: Path, copy: Path) -> None:
    shard_weights(copy, rename)
    expected, got = weights_of(folder), weights_of(copy)
    assert got.keys() == expected.keys()
    assert all(torch.equal(next(got[name].chunks()), next(expected[name].chunks())) for name in expected)


def test_a_published_config_reads_as_the_new_one(folder: Path, copy: Path) -> None:
    """Published files leave out what is a default, and have theta beside the rest."""
    config = json.loads((copy / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    theta = text.pop("rope_parameters")["rope_theta"]
    kept = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = {name: text[name] for name in (*kept, "num_key_value_heads", "eos_token_id", "pad_token_id")}
    vision = {name: vision[name] for name in vision if name not in ("layer_norm_eps", "hidden_act", "num_channels")}
    defaults = ("vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act")
    config = {name: value for name, value in config.items() if name not in (*defaults, "multimodal_projector_bias")}
    config |= {"text_config": text | {"rope_theta": theta}, "vision_config": vision, "vision_aspect_ratio": "anyres_max_4"}
    (copy / "config.json").write_text(json.dumps(config))
    published, new = read(copy), read(folder)
    assert published.vision == new.vision
    assert published.decoder.max_position_embeddings == 32768
    assert {**vars(published.decoder), "max_position_embeddings": 0} == {**vars(new.decoder), "max_position_embeddings": 0}
    assert published.processor() == new.processor()
    assert published.prompt() == new.prompt()
    assert published.config.vision_feature_layer == new.config.vision_feature_layer


@pytest.mark.parametrize(("top", "text", "tied"), [(False, True, True), (True, False, True), (False, False, False)])
def test_tied_embeddings_are_said_in_either_place(top: bool, text: bool, tied: bool, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    change(copy, tie_word_embeddings=top, text_config={**config["text_config"], "tie_word_embeddings": text})
    assert read(copy).decoder.tie_word_embeddings is tied


def test_defaults_are_those_of_transformers(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    change(copy, image_grid_pinpoints=None, vision_config={**config["vision_config"], "image_size": 384})
    (copy / "preprocessor_config.json").unlink()
    constants, images = read(copy).processor(), LlavaOnevisionImageProcessorPil()
    pinpoints = LlavaOnevisionConfig().image_grid_pinpoints
    assert constants.image_grid_pinpoints == tuple(map(tuple, pinpoints))
    assert pinpoints == images.image_grid_pinpoints
    for name in ("image_mean", "image_std", "rescale_factor"):
        assert getattr(constants, name) == pytest.approx(getattr(images, name))


def test_constants_and_prompt(folder: Path) -> None:
    family = read(folder)
    constants, prompt = family.processor(), family.prompt()
    assert (constants.image_size, constants.patch_size, constants.max_crops) == (IMAGE_SIZE, PATCH_SIZE, 4)
    assert constants.image_grid_pinpoints == tuple(map(tuple, PINPOINTS))
    assert (prompt.image_token, prompt.video_token) == ("<image>", "<video>")
    assert family.checkpoint.token(prompt.eos_token_ids[0]) == "<|im_end|>"


@pytest.mark.parametrize(
    ("file", "key"), [("processor_config.json", "image_processor"), ("video_preprocessor_config.json", "")]
)
def test_preprocessing_from_each_of_its_places(file: str, key: str, folder: Path, copy: Path) -> None:
    values = json.loads((copy / "preprocessor_config.json").read_text())
    if key:
        (copy / "preprocessor_config.json").unlink()
        values = {key: values, "video_processor": {**values, "image_mean": [0.5, 0.45, 0.5]}}
    (copy / file).write_text(json.dumps(values))
    assert read(copy).processor() == read(folder).processor()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"vision_feature_layer": [-1, -2]}, "vision_feature_layer is"),
    ("config.json", {"vision_feature_layer": 3}, "feature layer is 3"),
    ("config.json", {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
    ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act"),
    ("config.json", {"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'"),
    ("config.json", {"vision_config": {"model_type": "clip_vision_model"}}, "vision_config.model_type is 'clip_vision_model'"),
    ("config.json", {"image_token_index": None}, "image_token_index is 151646, the table of the text model has"),
    ("config.json", {"image_grid_pinpoints": [[72, 72]]}, "other image_grid_pinpoints"),
    ("config.json", {"image_grid_pinpoints": [[72, 100]]}, "don't tile"),
    ("preprocessor_config.json", {"size": {"height": 72, "width": 80}}, "size is {'height': 72, 'width': 80}, supported"),
    ("preprocessor_config.json", {"resample": 6}, "resample is 6"),
    ("video_preprocessor_config.json", {"size": {"height": 72, "width": 72}}, "image_mean of videos"),
]


@pytest.mark.parametrize(("file", "values", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_the_graphs_do_not_do_is_an_export_error(file: str, values: dict[str, Any], message: str, copy: Path) -> None:
    change(copy, file, **values)
    with pytest.raises(ExportError, match=message):
        use(copy)


def use(folder: Path) -> None:
    family = read(folder)
    family.vision_tower()
    family.processor()


def test_a_checkpoint_without_an_end_token_is_an_export_error(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    change(copy, text_config={**config["text_config"], "eos_token_id": None})
    change(copy, "generation_config.json", eos_token_id=None)
    with pytest.raises(ExportError, match="names no 'eos_token_id'"):
        read(copy).prompt()


def test_a_projector_without_bias(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "checkpoint", multimodal_projector_bias=False)
    assert "visual.multi_modal_projector.linear_1.bias" not in weights_of(folder)


def test_engines_build_for_a_gpu_that_is_not_here(exported: ExportResult, tmp_path: Path) -> None:
    bundle = Bundle.open(exported.bundle, verify=False)
    shapes = plan_shapes(bundle.manifest, frames=Range(1, 2, 4), new_tokens=16)
    built = build(bundle, BuildOptions(shapes, targets=("sm89",)), EngineStore(tmp_path))
    assert [one.entry.record.key.graph for one in built] == ["vision_standard", "score", "embed", "decoder_standard"]
    vision = built[0].entry.record.key.options["profiles"][0]["ranges"]
    assert vision["frames"][2] >= 4

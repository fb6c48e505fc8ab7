"""The facts of LLaVA-1.5: spellings of configs and weights, constants, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaConfig

from foveate.engines import Bundle, ExportError, Range
from foveate.engines.builds.build import BuildOptions, build
from foveate.engines.builds.store import EngineStore
from foveate.exporter import ExportResult, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.families.llava import Llava
from foveate.exporter.precision import FP32_GRAPHS
from foveate.runtime.shapes import plan_shapes
from tests.exporter.spellings import change, shard_weights, weights_of
from tests.tiny_llava import IMAGE_SIZE, PATCH_SIZE, save_tiny

PUBLISHED = {"vision_tower.": "vision_tower.vision_model."}
LATER_5 = {
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed: see `copy`."""
    return save_tiny(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportResult:
    """With the parity check on."""
    return export(folder, folder.parent / "tiny.bundle")


def read(folder: Path) -> Llava:
    family = read_family(Checkpoint.open(folder))
    assert type(family) is Llava
    return family


def test_every_graph_is_that_of_transformers(exported: ExportResult) -> None:
    assert exported.parity is not None
    assert exported.parity.passed
    assert {row.graph for row in exported.parity.rows} == set(FP32_GRAPHS)
    pixels, places = Bundle.open(exported.bundle).graph("vision").inputs
    assert (pixels.name, pixels.shape) == ("pixel_values", ("frames", "patches", 3 * PATCH_SIZE**2))
    assert (places.name, places.shape) == ("patch_indices", ("frames", "patches"))


def test_the_last_layer_and_plain_gelu_are_those_of_transformers(tmp_path: Path) -> None:
    tower = {"hidden_act": "gelu", "num_hidden_layers": 2, "model_type": "clip_vision_model", "image_size": 28}
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3, "patch_size": 14}
    folder = save_tiny(tmp_path / "checkpoint", vision_config={**tower, **sizes}, vision_feature_layer=-1)
    result = export(change(folder, "preprocessor_config.json", crop_size=28, size=28), tmp_path / "x.bundle")
    assert result.parity is not None
    assert result.parity.passed


def test_layers_behind_the_one_that_is_read_are_left_out(folder: Path) -> None:
    names = weights_of(folder)
    assert "visual.vision_tower.encoder.layers.1.mlp.fc1.weight" in names
    assert "visual.vision_tower.encoder.layers.2.mlp.fc1.weight" not in names


@pytest.mark.parametrize("rename", [PUBLISHED, LATER_5], ids=["published", "later 5"])
def test_every_spelling_gives_the_same_weights(rename: dict[str, str], folder: Path, copy: Path) -> None:
    shard_weights(copy, rename)
    expected, got = weights_of(folder), weights_of(copy)
    assert got.keys() == expected.keys()
    assert all(torch.equal(next(got[name].chunks()), next(expected[name].chunks())) for name in expected)


def test_a_published_config_leaves_out_the_defaults(copy: Path) -> None:
    """That of llava-hf/llava-1.5-7b-hf, whose decoder is named by little more than its type."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    config = json.loads((copy / "config.json").read_text())
    vision = {name: config["vision_config"][name] for name in ("model_type", "hidden_size", "patch_size", "image_size")}
    defaults = ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "multimodal_projector_bias")
    config = {name: value for name, value in config.items() if name not in defaults}
    (copy / "config.json").write_text(json.dumps({**config, "text_config": text, "vision_config": vision}))
    decoder, family = read(copy).decoder, read(copy)
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers) == (4096, 11008, 32)
    assert (decoder.num_key_value_heads, decoder.head_dim, decoder.vocab_size, decoder.rope_theta) == (32, 128, 32064, 10000.0)
    assert (family.vision.hidden_act, family.vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert family.config.vision_feature_layer == -2


def test_an_end_token_that_no_file_names_is_the_default_of_llama(copy: Path) -> None:
    """As transformers reads it, with or without a generation_config.json."""
    (copy / "generation_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    del config["text_config"]["eos_token_id"]
    (copy / "config.json").write_text(json.dumps(config))
    expected = LlavaConfig.from_pretrained(copy).text_config.eos_token_id
    assert read(copy).prompt().eos_token_ids == (expected,)


@pytest.mark.parametrize("other", [True, False])
def test_the_other_name_of_the_image_token_wins(copy: Path, other: bool) -> None:
    token = read(copy).image_token_id
    change(copy, image_token_index=token - 1 if other else token, image_token_id=token if other else None)
    assert read(copy).image_token_id == LlavaConfig.from_pretrained(copy).image_token_id == token


def test_constants_and_prompt(folder: Path) -> None:
    family = read(folder)
    constants, prompt = family.processor(), family.prompt()
    assert (constants.image_size, constants.patch_size) == (IMAGE_SIZE, PATCH_SIZE)
    assert (prompt.image_token, prompt.video_token) == ("<image>", None)
    assert family.checkpoint.token(prompt.eos_token_ids[0]) == "<|im_end|>"


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_preprocessing_from_each_of_its_places(file: str, folder: Path, copy: Path) -> None:
    values = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    (copy / file).write_text(json.dumps(values if file == "preprocessor_config.json" else {"image_processor": values}))
    assert read(copy).processor() == read(folder).processor()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"vision_feature_layer": [-1, -2]}, "vision_feature_layer is"),
    ("config.json", {"vision_feature_layer": 4}, "feature layer is 4"),
    ("config.json", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
    ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act"),
    (
        "config.json",
        {"vision_config": {"model_type": "siglip_vision_model"}},
        "vision_config.model_type is 'siglip_vision_model'",
    ),
    (
        "config.json",
        {"vision_config": {"model_type": "clip_vision_model", "hidden_act": "relu"}},
        "vision_config.hidden_act is 'relu'",
    ),
    ("config.json", {"text_config": {"model_type": "mistral"}}, "model_type is 'mistral'"),
    ("config.json", {"image_token_index": 999}, "image_token_index is 999, the table of the text model has"),
    ("preprocessor_config.json", {"size": {"shortest_edge": 300}}, r"size is \[300\], expected at most 4 times the 56 pixels"),
    ("preprocessor_config.json", {"crop_size": {"height": 56, "width": 48}}, r"crop_size is {'height': 56, 'width': 48}"),
    ("preprocessor_config.json", {"do_center_crop": False, "size": 64}, "size without do_center_crop"),
    ("preprocessor_config.json", {"do_pad": True}, "do_pad is True"),
    ("preprocessor_config.json", {"resample": 6}, "resample is 6"),
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
    family.prompt()


def test_engines_build_for_a_gpu_that_is_not_here(exported: ExportResult, tmp_path: Path) -> None:
    bundle = Bundle.open(exported.bundle, verify=False)
    shapes = plan_shapes(bundle.manifest, frames=Range(1, 1, 2), new_tokens=16)
    built = build(bundle, BuildOptions(shapes, targets=("sm89",)), EngineStore(tmp_path))
    assert [one.entry.record.key.graph for one in built] == ["vision_standard", "score", "embed", "decoder_standard"]

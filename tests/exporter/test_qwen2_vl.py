"""The facts of Qwen2-VL: spellings of configs and weights, constants, and the shapes that are computed from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids

from foveate.engines import ExportError
from foveate.engines.format.processors.qwen2_vl import patch_positions
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.families.qwen2_vl import Qwen2VL
from foveate.exporter.pipeline import build_graphs
from foveate.exporter.weights import Weight, resolve_weights
from tests.exporter.spellings import flatten_config, shard_weights


def read(folder: Path) -> Qwen2VL:
    family = read_family(Checkpoint.open(folder))
    assert isinstance(family, Qwen2VL)
    return family


def weights_of(folder: Path) -> dict[str, Weight]:
    family = read(folder)
    return resolve_weights([graph.module for graph in build_graphs(family)], family.checkpoint, family.checkpoint_keys)


def test_flat_config_reads_as_the_nested_one(checkpoint_folder: Path, checkpoint_copy: Path) -> None:
    flatten_config(checkpoint_copy)
    flat, nested = read(checkpoint_copy), read(checkpoint_folder)
    assert flat.decoder == nested.decoder
    assert flat.vision == nested.vision
    assert flat.processor() == nested.processor()
    assert flat.prompt() == nested.prompt()


@pytest.mark.parametrize("rename", [{}, {"model.": "model.language_model.", "visual.": "model.visual."}])
def test_shards_and_both_spellings_give_the_same_weights(
    rename: dict[str, str], checkpoint_folder: Path, checkpoint_copy: Path
) -> None:
    shard_weights(checkpoint_copy, rename)
    expected, got = weights_of(checkpoint_folder), weights_of(checkpoint_copy)
    assert got.keys() == expected.keys()
    assert all(torch.equal(next(got[name].chunks()), next(expected[name].chunks())) for name in expected)


def test_decoder_config_is_that_of_transformers(checkpoint_folder: Path) -> None:
    text = Qwen2VLConfig.from_pretrained(checkpoint_folder).text_config
    decoder = read(checkpoint_folder).decoder
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "vocab_size",
    ):
        assert getattr(decoder, name) == getattr(text, name)
    assert decoder.rope_theta == text.rope_parameters["rope_theta"]
    assert decoder.tie_word_embeddings


def test_class_defaults_may_be_left_out(checkpoint_copy: Path) -> None:
    """As transformers 4.46 saved `vision_config`."""
    config = json.loads((checkpoint_copy / "config.json").read_text())
    config["vision_config"] = {"in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14}
    config["text_config"]["hidden_size"] = 3584
    config["text_config"]["num_attention_heads"] = 112
    (checkpoint_copy / "config.json").write_text(json.dumps(config))
    expected, vision = Qwen2VLConfig.from_pretrained(checkpoint_copy).vision_config, read(checkpoint_copy).vision
    for name in (
        "depth",
        "embed_dim",
        "num_heads",
        "mlp_ratio",
        "hidden_size",
        "hidden_act",
        "patch_size",
        "spatial_merge_size",
    ):
        assert getattr(vision, name) == getattr(expected, name), name


def test_the_activation_of_the_tower_is_that_of_transformers(checkpoint_copy: Path) -> None:
    config = json.loads((checkpoint_copy / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (checkpoint_copy / "config.json").write_text(json.dumps(config))
    family = read(checkpoint_copy)
    tower, weights = family.vision_tower(), weights_of(checkpoint_copy)
    values = {name: torch.cat(list(weights[f"visual.{name}"].chunks())).float() for name in tower.state_dict()}
    tower.load_state_dict(values, assign=True)
    _, feeds = next(iter(family.vision_cases(np.random.default_rng(0))))
    with torch.no_grad():
        got = tower(*map(torch.from_numpy, feeds.values()))
    torch.testing.assert_close(got.flatten(0, -2), family.reference().visual_embeds(feeds), rtol=1e-4, atol=1e-4)


def test_prompt(checkpoint_folder: Path) -> None:
    family = read(checkpoint_folder)
    prompt = family.prompt()
    assert (prompt.image_token, prompt.video_token) == ("<|image_pad|>", "<|video_pad|>")
    assert family.checkpoint.token(prompt.eos_token_ids[0]) == "<|im_end|>"
    assert family.checkpoint.token(prompt.pad_token_id) == "<|endoftext|>"


def test_several_end_tokens(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 3]}))
    assert read(checkpoint_copy).prompt().eos_token_ids == (5, 3)


OLD_SIZE = {"size": {"shortest_edge": 100, "longest_edge": 2000}}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessor_config.json", {"min_pixels": 100, "max_pixels": 2000}),
        ("preprocessor_config.json", OLD_SIZE),
        ("preprocessor_config.json", OLD_SIZE | {"min_pixels": None, "max_pixels": None}),
        ("processor_config.json", {"image_processor": OLD_SIZE}),
    ],
)
def test_pixel_limits_from_each_of_their_places(file: str, content: dict[str, Any], checkpoint_copy: Path) -> None:
    (checkpoint_copy / "preprocessor_config.json").unlink()
    (checkpoint_copy / file).write_text(json.dumps(content))
    constants = read(checkpoint_copy).processor()
    assert (constants.min_pixels, constants.max_pixels) == (100, 2000)


def test_processor_defaults_are_those_of_transformers(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "preprocessor_config.json").unlink()
    constants, reference = read(checkpoint_copy).processor(), Qwen2VLImageProcessorPil()
    assert constants.min_pixels == reference.size["shortest_edge"]
    assert constants.max_pixels == reference.size["longest_edge"]
    for name in ("image_mean", "image_std", "rescale_factor", "patch_size", "temporal_patch_size", "merge_size"):
        assert getattr(constants, name) == pytest.approx(getattr(reference, name))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("video_preprocessor_config.json", OLD_SIZE),
        ("video_preprocessor_config.json", {"min_pixels": 100, "max_pixels": 2000}),
        ("processor_config.json", {"video_processor": OLD_SIZE}),
    ],
)
def test_limits_of_frames_from_each_of_their_places(file: str, content: dict[str, Any], checkpoint_copy: Path) -> None:
    images = read(checkpoint_copy).processor()
    (checkpoint_copy / "video_preprocessor_config.json").unlink(missing_ok=True)
    (checkpoint_copy / file).write_text(json.dumps(content))
    constants = read(checkpoint_copy).processor()
    assert (constants.video_min_pixels, constants.video_max_pixels) == (100, 2000)
    assert (constants.min_pixels, constants.max_pixels) == (images.min_pixels, images.max_pixels)


def test_limits_of_frames_without_a_config_of_videos(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "video_preprocessor_config.json").unlink(missing_ok=True)
    constants = read(checkpoint_copy).processor()
    assert (constants.video_min_pixels, constants.video_max_pixels) == (128 * 28 * 28, 768 * 28 * 28)


def test_frames_normalised_unlike_images_are_refused(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "video_preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ExportError, match=r"video_preprocessor_config\.json: image_mean of videos is .* expected the same"):
        read(checkpoint_copy).processor()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (10, 2)])
def test_patch_positions_are_those_of_transformers(height: int, width: int) -> None:
    expected = get_vision_position_ids(torch.tensor([[1, height, width]]), 2, kwargs={})
    assert np.array_equal(patch_positions(height, width, merge_size=2), expected.numpy())

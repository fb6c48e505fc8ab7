"""The SigLIP tower against transformers, layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from foveate.engines import ExportError
from foveate.exporter.modules import Linear
from foveate.exporter.siglip import SiglipConfig, SiglipTower

WHERE = Path("config.json")


@pytest.fixture(scope="module")
def model() -> SiglipVisionModel:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=30, patch_size=7
    )
    model = SiglipVisionModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def config(model: SiglipVisionModel) -> SiglipConfig:
    return SiglipConfig.read(model.config.to_dict(), WHERE)


def load(tower: SiglipTower, model: SiglipVisionModel) -> SiglipTower:
    """The model's weights in the layout of the graphs."""
    linear = {f"{name}.weight" for name, child in tower.named_modules() if isinstance(child, Linear)}
    source = model.state_dict()
    values = {name: source[name].flatten(1).T if name in linear else source[name] for name in tower.state_dict()}
    tower.load_state_dict(values, assign=True)
    return tower


@pytest.mark.parametrize("feature_layer", [-1, -2, -4, 0, 1])
def test_hidden_states_are_those_of_transformers(config: SiglipConfig, model: SiglipVisionModel, feature_layer: int) -> None:
    tower = load(SiglipTower(config, config.layers(feature_layer, WHERE), post_layernorm=False), model)
    pixels = torch.randn(2, 3, 30, 30)
    expected = model(pixels, output_hidden_states=True).hidden_states[feature_layer]
    torch.testing.assert_close(tower(patches(pixels), everywhere(2)), expected, rtol=1e-5, atol=1e-5)


def everywhere(frames: int) -> torch.Tensor:
    """All places of pictures of 4 x 4 patches."""
    return torch.arange(16).expand(frames, 16)


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """Whole patches, flattened as the convolution has them."""
    return torch.nn.functional.unfold(pixels[:, :, :28, :28], 7, stride=7).transpose(1, 2)


def test_the_norm_behind_the_last_block(config: SiglipConfig, model: SiglipVisionModel) -> None:
    tower = load(SiglipTower(config, config.num_hidden_layers, post_layernorm=True), model)
    pixels = torch.randn(1, 3, 30, 30)
    torch.testing.assert_close(tower(patches(pixels), everywhere(1)), model(pixels).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_some_of_the_patches_each_at_its_place(config: SiglipConfig, model: SiglipVisionModel) -> None:
    """As if the others were there, and no patch could see them."""
    tower = load(SiglipTower(config, 3, post_layernorm=False), model)
    pixels, places = torch.randn(1, 3, 30, 30), torch.tensor([[1, 5, 6, 15]])
    blind = torch.full((16, 16), float("-inf"))
    blind[:, places[0]] = 0
    embeds = model.embeddings(pixels)
    for layer in model.encoder.layers:
        embeds = layer(embeds, attention_mask=blind[None, None])
    got = tower(patches(pixels)[:, places[0]], places)
    torch.testing.assert_close(got, embeds[:, places[0]], rtol=1e-5, atol=1e-5)


def test_only_the_layers_that_are_needed_are_built(config: SiglipConfig) -> None:
    names = list(SiglipTower(config, config.layers(-2, WHERE), post_layernorm=False).state_dict())
    assert {name.split(".")[2] for name in names if name.startswith("encoder.")} == {"0", "1"}
    assert not any(name.startswith("post_layernorm") for name in names)


def test_sizes_of_the_published_tower() -> None:
    config = SiglipConfig.read({"image_size": 384, "patch_size": 14, "num_hidden_layers": 26}, WHERE)
    assert (config.grid_size, config.patches, config.patch_values) == (27, 729, 588)
    assert (config.layers(-1, WHERE), config.layers(-2, WHERE), config.layers(0, WHERE)) == (26, 25, 0)


@pytest.mark.parametrize("layer", [27, -28])
def test_a_layer_that_is_not_there_is_an_export_error(layer: int) -> None:
    config = SiglipConfig(num_hidden_layers=26)
    with pytest.raises(ExportError, match=f"feature layer is {layer}, the tower has hidden states -27 to 26"):
        config.layers(layer, WHERE)


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"num_channels": 1}, {"hidden_size": "wide"}])
def test_what_the_tower_does_not_do_is_an_export_error(change: dict[str, object]) -> None:
    with pytest.raises(ExportError, match=next(iter(change))):
        SiglipConfig.read(change, WHERE)

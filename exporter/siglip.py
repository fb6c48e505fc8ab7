"""The SigLIP vision tower (arXiv 2303.15343), up to the layer that a family reads; `clip` shares its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from foveate.engines import ExportError, TensorSpec
from foveate.engines.format.processors.pixels import patch_values, whole_patches
from foveate.exporter.config import BELONGING, Layers, ModelConfig, Positive, because, check_multiple
from foveate.exporter.modules import LayerNorm, Linear, empty

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_pytorch_tanh": partial(nn.functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
"""`hidden_act` of a tower, as transformers names it."""


class SiglipConfig(ModelConfig, frozen=True):
    """`vision_config` of config.json, of model type `siglip_vision_model`; defaults as in transformers' SiglipVisionConfig."""

    hidden_size: Positive = 768
    intermediate_size: Positive = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Positive = 12
    image_size: Positive = 224
    patch_size: Positive = 16
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    model_type: str = "siglip_vision_model"

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "model_type": ("siglip_vision_model",),
        "num_channels": (3,),
        "hidden_act": tuple(ACTIVATIONS),
    }
    ignored: ClassVar[Mapping[str, str]] = because("of training", "attention_dropout", "initializer_range") | because(
        "no family reads the pooling head", "vision_use_head"
    )

    def check(self, where: Path, part: str) -> None:
        check_multiple(where, f"{part}hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        if self.image_size < self.patch_size:
            raise ExportError(
                f"{where}: {part}image_size is {self.image_size}, less than a patch of {self.patch_size}. {BELONGING}"
            )

    @property
    def grid_size(self) -> int:
        """Patches along one side; pixels that fill no whole patch are not seen."""
        return whole_patches(self.image_size, self.patch_size)

    @property
    def patches(self) -> int:
        """Patches of one crop or frame."""
        return self.grid_size**2

    @property
    def patch_values(self) -> int:
        """Numbers of one flattened patch."""
        return patch_values(self.patch_size)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the tower takes: patches of crops or frames, and the places of these, counted row by row."""
        return (
            TensorSpec("pixel_values", "float32", ("frames", "patches", self.patch_values)),
            TensorSpec("patch_indices", "int64", ("frames", "patches")),
        )

    def cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Whole pictures and parts of pictures to try, each with what it is; `inputs` of the tower."""
        third = math.ceil(self.patches / 3)
        for frames, patches, what in ((1, self.patches, "whole"), (3, self.patches, "whole"), (2, third, "a third of")):
            places = [np.sort(random.permutation(self.patches)[:patches]) for _ in range(frames)]
            yield f"{what} {frames}", self.feeds(np.stack(places), random)

    def feeds(self, places: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Noise as the patches at `places [frames, patches]`; `inputs` of the tower."""
        pixels = random.standard_normal((*places.shape, self.patch_values), dtype=np.float32)
        return {"pixel_values": pixels, "patch_indices": places}

    def layers(self, feature_layer: int, where: Path) -> int:
        """How many blocks `hidden_states[feature_layer]` of transformers takes, 0 being the embeddings.

        Raises:
            ExportError: the tower has no such hidden state.
        """
        count = self.num_hidden_layers
        layers = feature_layer + count + 1 if feature_layer < 0 else feature_layer
        if not 0 <= layers <= count:
            raise ExportError(
                f"{where}: vision feature layer is {feature_layer}, the tower has hidden states {-count - 1} to {count}. "
                "Use the file that belongs to the weights."
            )
        return layers


class SiglipTower(nn.Module):
    """The first `layers` blocks, for weights named as in transformers' SiglipVisionModel without its `vision_model`.

    Args:
        config: sizes.
        layers: how many blocks; see `SiglipConfig.layers`.
        post_layernorm: whether the norm behind the last block follows.
    """

    def __init__(self, config: SiglipConfig, layers: int, post_layernorm: bool) -> None:
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = SiglipEncoder(config, layers)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps) if post_layernorm else None

    def forward(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        """`[frames, patches, hidden_size]` of `pixel_values [frames, patches, patch_values]`, any patches of a picture.

        `patch_indices [frames, patches]` are their places in it, counted row by row. Frames are a batch: they do not see each
        other.
        """
        x = self.encoder(self.embeddings(pixel_values, patch_indices))
        return x if self.post_layernorm is None else self.post_layernorm(x)


class SiglipEmbeddings(nn.Module):
    """The patch convolution as a product, because its stride is its kernel, and a learned vector for each place."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.patch_embedding = Linear(config.patch_values, config.hidden_size, bias=True)
        self.position_embedding = Positions(config.patches, config.hidden_size)

    def forward(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        return self.patch_embedding(pixel_values) + self.position_embedding(patch_indices)


class Positions(nn.Module):
    """Rows of `weight [places, hidden_size]`."""

    def __init__(self, places: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = empty(places, hidden_size)

    def forward(self, indices: Tensor) -> Tensor:
        return nn.functional.embedding(indices, self.weight)


class SiglipEncoder(nn.Module):
    """One block after the other."""

    def __init__(self, config: SiglipConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class SiglipLayer(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SiglipAttention(nn.Module):
    """Every patch of a frame sees every patch of that frame."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width, bias=True) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        output = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(output.transpose(1, 2).flatten(2))


class SiglipMLP(nn.Module):
    """Two layers with GELU, or an approximation of it, between them."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))

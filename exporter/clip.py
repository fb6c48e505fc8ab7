"""The CLIP vision tower (arXiv 2103.00020), up to the layer that a family reads; its blocks are SigLIP's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.exporter.config import Positive, because
from foveate.exporter.modules import LayerNorm, Linear, empty
from foveate.exporter.siglip import Positions, SiglipConfig, SiglipEncoder


class ClipConfig(SiglipConfig, frozen=True):
    """`vision_config` of config.json, of model type `clip_vision_model`; defaults as in transformers' CLIPVisionConfig."""

    patch_size: Positive = 32
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    model_type: str = "clip_vision_model"

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {"model_type": ("clip_vision_model",)}
    ignored: ClassVar[Mapping[str, str]] = because("of training", "initializer_factor", "dropout") | because(
        "of CLIP's text side, which no family reads", "projection_dim", "vocab_size"
    )


class ClipTower(nn.Module):
    """The first `layers` blocks, for weights named as in transformers' CLIPVisionModel without its `vision_model`.

    Args:
        config: sizes.
        layers: how many blocks; see `SiglipConfig.layers`.
    """

    def __init__(self, config: ClipConfig, layers: int) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps)  # as the weights spell it
        self.encoder = SiglipEncoder(config, layers)

    def forward(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        """`[frames, patches, hidden_size]` of `pixel_values [frames, patches, patch_values]`, any patches of a picture.

        `patch_indices [frames, patches]` are their places in it, counted row by row. The class token, which every patch
        sees, is left out at the end. Frames are a batch: they do not see each other.
        """
        return self.encoder(self.pre_layrnorm(self.embeddings(pixel_values, patch_indices)))[:, 1:]


class ClipEmbeddings(nn.Module):
    """The patch convolution as a product, a class token before the patches, and a learned vector for each place."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.class_embedding = empty(config.hidden_size)
        self.patch_embedding = Linear(config.patch_values, config.hidden_size, bias=False)
        self.position_embedding = Positions(config.patches + 1, config.hidden_size)

    def forward(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        places = nn.functional.pad(patch_indices + 1, (1, 0))  # the class token has the first place
        return torch.cat((first, patches), dim=1) + self.position_embedding(places)

"""transformers' SigLIP and CLIP towers over some of the patches of pictures: what the graphs' towers are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def hidden_state(tower: Any, feeds: Mapping[str, np.ndarray], layer: int) -> Tensor:
    """`hidden_states[layer]` of a vision model, `[frames, patches, hidden_size]`, a class token before the patches.

    The model sees whole pictures. Behind its own embeddings those patches are taken out that are not there.

    Args:
        tower: transformers' model.
        feeds: `pixel_values` and `patch_indices` of the vision graph.
        layer: which hidden state, as transformers counts them.
    """
    places = torch.from_numpy(feeds["patch_indices"])
    pictures = unpatch(torch.from_numpy(feeds["pixel_values"]), places, tower.config.patch_size, tower.config.image_size)

    def take_out(module: nn.Module, inputs: object, embeds: Tensor) -> Tensor:
        before = embeds.shape[1] - (tower.config.image_size // tower.config.patch_size) ** 2  # a class token, or nothing
        rows = torch.cat((torch.arange(before).expand(len(places), before), places + before), dim=1)
        return embeds.take_along_dim(rows[..., None], dim=1)

    embeddings = getattr(tower, "vision_model", tower).embeddings
    with embeddings.register_forward_hook(take_out):
        states: tuple[Tensor, ...] = tower(pixel_values=pictures, output_hidden_states=True).hidden_states
    return states[layer]


def unpatch(patches: Tensor, places: Tensor, patch_size: int, image_size: int) -> Tensor:
    """Pictures `[frames, 3, image_size, image_size]` of patches `[frames, patches, 3 * patch_size ** 2]`, black elsewhere.

    Args:
        patches: in the order channel, row, column.
        places: `[frames, patches]` int64, of each in its picture, counted row by row.
        patch_size: side of a patch in pixels.
        image_size: side of a picture in pixels; those that fill no whole patch are not seen.
    """
    side = image_size // patch_size
    everywhere = patches.new_zeros(len(patches), side**2, patches.shape[2])
    everywhere.scatter_(1, places[..., None].expand(patches.shape), patches)
    pictures = nn.functional.fold(everywhere.transpose(1, 2), side * patch_size, patch_size, stride=patch_size)
    rest = image_size - side * patch_size
    return nn.functional.pad(pictures, (0, rest, 0, rest))

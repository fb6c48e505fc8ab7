"""VILA1.5 in torch, from its published architecture (arXiv 2312.07533), because transformers has no class that loads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.exporter.family import ReferenceOutput
from foveate.exporter.quiet import quiet_transformers
from foveate.exporter.tower_reference import hidden_state


class DownsampleProjector(nn.Module):
    """`mlp_downsample`: each 2 x 2 patches become one token; its parameters have the published names.

    Args:
        vision_size: channels of a patch.
        hidden_size: of the language model.
    """

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        width = 4 * vision_size
        self.layers = nn.Sequential(
            nn.Identity(),
            nn.LayerNorm(width),
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """`[frames, tokens, hidden_size]` of a square grid of patches `[frames, patches, vision_size]`, row by row."""
        return self.layers(regroup(patches))


def regroup(patches: Tensor) -> Tensor:
    """Lays 2 x 2 neighbours `[frames, patches, channels]` side by side: `[frames, tokens, 4 * channels]`.

    A grid of odd size gets a row and a column of zeros. Within a token the upper two come first, left before right; the tokens
    come column by column, the way VILA was trained.
    """
    side = math.isqrt(patches.shape[1])
    grid = patches.unflatten(1, (side, side))
    grid = nn.functional.pad(grid, (0, 0, 0, side % 2, 0, side % 2))
    windows = grid.unfold(1, 2, 2).unfold(2, 2, 2)  # [frames, rows, columns, channels, 2, 2]
    return windows.permute(0, 2, 1, 4, 5, 3).flatten(1, 2).flatten(2)


class LlavaLlamaReference:
    """The parts of a checkpoint in float32 with eager attention; see `Reference`.

    Args:
        path: folder of the checkpoint.
        select_layer: which hidden state of the vision tower is read, as `mm_vision_select_layer` has it.
    """

    def __init__(self, path: Path, select_layer: int) -> None:
        from transformers import LlamaForCausalLM, SiglipVisionModel

        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
        with quiet_transformers():
            self.tower = SiglipVisionModel.from_pretrained(path / "vision_tower", **options).eval().requires_grad_(False)
            self.llm = LlamaForCausalLM.from_pretrained(path / "llm", **options).eval().requires_grad_(False)
        self.projector = DownsampleProjector(self.tower.config.hidden_size, self.llm.config.hidden_size).requires_grad_(False)
        weights = load_file(path / "mm_projector" / "model.safetensors")
        self.projector.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self._select_layer = select_layer

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """`[frames, tokens, D]` of pictures `[frames, 3, height, width]`."""
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        return self.projector(states[self._select_layer])

    @torch.no_grad()
    def visual_embeds(self, feeds: Mapping[str, np.ndarray]) -> Tensor:
        config = self.tower.config
        side = config.image_size // config.patch_size
        features, places = hidden_state(self.tower, feeds, self._select_layer), torch.from_numpy(feeds["patch_indices"])
        grid = features.new_zeros(len(features), side**2, features.shape[2])
        tokens = self.projector(grid.scatter_(1, places[..., None].expand(features.shape), features))
        upper_left = torch.from_numpy(feeds["gather_indices"][:, 0])
        # A token's place follows from its first patch, the one of its upper left corner.
        frame = upper_left // places.shape[1]
        row, column = places.flatten()[upper_left] // side, places.flatten()[upper_left] % side
        return tokens[frame, column // 2 * math.ceil(side / 2) + row // 2]

    @torch.no_grad()
    def text_embeds(self, input_ids: Tensor) -> Tensor:
        return self.llm.get_input_embeddings()(input_ids)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> ReferenceOutput:
        # Without a mask transformers takes gaps between positions for the borders of packed sequences.
        mask = torch.ones(1, len(inputs_embeds), dtype=torch.long)
        output = self.llm(
            inputs_embeds=inputs_embeds[None],
            position_ids=position_ids,
            attention_mask=mask,
            use_cache=False,
            output_attentions=True,
        )
        return ReferenceOutput(output.logits[0], tuple(output.attentions))

"""What the exporter asks of a model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor, nn

from foveate.engines import PromptEntry
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.decoder import DecoderConfig


class ReferenceOutput(NamedTuple):
    """`logits [tokens, vocab_size]`, and of each layer the very `attentions [1, heads, tokens, tokens]` they came from."""

    logits: Tensor
    attentions: tuple[Tensor, ...]


class Reference(Protocol):
    """The checkpoint in its own library, in float32: what the graphs are held against."""

    def visual_embeds(self, pixel_values: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """`[visual_tokens, D]` of the patches `[frames * height * width, patch_values]` of one image or video."""
        ...

    def text_embeds(self, input_ids: Tensor) -> Tensor:
        """`[..., D]` of token ids `[...]`."""
        ...

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> ReferenceOutput:
        """One whole sequence `[tokens, D]`, `position_ids [position_axes, tokens]`, with gradient where that is enabled."""
        ...


class Family(Protocol):
    """One checkpoint of a model family, its config read."""

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Self:
        """Reads the config of a checkpoint of this family."""
        ...

    @property
    def model_type(self) -> str:
        """`model_type` of config.json."""
        ...

    @property
    def decoder(self) -> DecoderConfig:
        """The text decoder."""
        ...

    @property
    def patch_values(self) -> int:
        """Numbers in one patch of `pixel_values`."""
        ...

    def vision_tower(self) -> nn.Module:
        """The module of the `vision` graph, its parameters without values."""
        ...

    def checkpoint_keys(self, name: str) -> Sequence[str]:
        """The names under which checkpoints may hold the parameter `name`."""
        ...

    def prompt(self) -> PromptEntry:
        """How messages become token ids."""
        ...

    def processor(self) -> dict[str, Any]:
        """The constants that the runtime's processor of this family reads."""
        ...

    def patch_positions(self, height: int, width: int) -> np.ndarray:
        """Row and column `[height * width, 2]` int64 of the patches of a grid, in the order of the processor."""
        ...

    def patch_grids(self) -> Sequence[tuple[int, int, int]]:
        """Small grids (frames, height, width in patches) that a parity check should try."""
        ...

    def reference(self) -> Reference:
        """Loads the checkpoint in its own library."""
        ...

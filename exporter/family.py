"""What the exporter asks of a model family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from torch import Tensor, nn

from foveate.engines import PromptEntry, TensorSpec
from foveate.engines.format.processors.pixels import PixelConstants
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.decoder import DecoderConfig


class ReferenceOutput(NamedTuple):
    """`logits [tokens, vocab_size]`, and of each layer the very `attentions [1, heads, tokens, tokens]` they came from."""

    logits: Tensor
    attentions: tuple[Tensor, ...]


class Reference(Protocol):
    """The checkpoint in its own library, in float32: what the graphs are held against."""

    def visual_embeds(self, feeds: Mapping[str, np.ndarray]) -> Tensor:
        """`[visual_tokens, D]` of one image or video, given as the vision graph's inputs."""
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
    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        """What the vision graph takes of one image or video; the runtime's processor makes it.

        It may have symbols of its own, see `foveate.engines.format.symbols`; the processor says how large they get
        (`VisionShape.others`). A float stays float32 in engines of half precision, unless its spec is `narrowable`.
        """
        ...

    def vision_tower(self) -> nn.Module:
        """The module of the `vision` graph: takes `vision_inputs` in order, its parameters have no values."""
        ...

    def checkpoint_keys(self, name: str) -> Sequence[str]:
        """The names under which checkpoints may hold the parameter `name`."""
        ...

    def prompt(self) -> PromptEntry:
        """How messages become token ids."""
        ...

    def processor(self) -> PixelConstants:
        """The constants that the runtime's processor of this family reads."""
        ...

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Small inputs of the vision graph that a parity check should try, each with what it is."""
        ...

    def reference(self) -> Reference:
        """Loads the checkpoint in its own library."""
        ...

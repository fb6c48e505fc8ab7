"""LLaVA-1.5: every fact about the family that the exporter needs. Its `model_type` is `llava`; LLaVA-OneVision builds on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from msgspec.structs import asdict
from torch import Tensor, nn

from foveate.engines import ExportError, PromptEntry, TensorSpec
from foveate.engines.format.processors.llava import LlavaConstants
from foveate.engines.format.processors.pixels import PixelConstants
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.clip import ClipConfig, ClipTower
from foveate.exporter.config import ModelConfig, because
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.family import ReferenceOutput
from foveate.exporter.generation import read_generation
from foveate.exporter.modules import Linear
from foveate.exporter.preprocessing import Preprocessing
from foveate.exporter.quiet import quiet_transformers
from foveate.exporter.siglip import SiglipConfig
from foveate.exporter.text_config import TextConfig, read_text_config
from foveate.exporter.tower_reference import hidden_state

_LARGEST_RESIZE = 4
"""Times the side of the square: how large the shorter side of a resized image may be before it is cropped."""
DEFAULT_TOWER = {
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
"""`vision_config` where a config has none, as transformers has it."""


class LlavaConfig(ModelConfig, frozen=True):
    """What is needed of config.json; defaults as in transformers' LlavaConfig."""

    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | list[int] = -2
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = False

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "projector_hidden_act": ("gelu",),
        "vision_feature_select_strategy": ("default",),
    }
    ignored: ClassVar[Mapping[str, str]] = (
        because("the tower says how many tokens an image has", "image_seq_length")
        | because("transformers reads that of `text_config`", "vocab_size", "pad_token_id")
        | because("of training", "ignore_index")
    )
    spellings: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}


@dataclass(frozen=True)
class Llava:
    """A LLaVA-1.5 checkpoint; see `Family`."""

    checkpoint: Checkpoint
    config: LlavaConfig
    vision: SiglipConfig
    text: TextConfig
    decoder: DecoderConfig
    model_type: str = "llava"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Llava:
        """Reads config.json.

        Raises:
            ExportError: a key is missing, or asks for what the graphs do not do.
        """
        where = checkpoint.path / "config.json"
        config = LlavaConfig.read(checkpoint.config, where)
        vision = ClipConfig.read(
            DEFAULT_TOWER if config.vision_config is None else config.vision_config, where, "vision_config."
        )
        return cls(checkpoint, config, vision, *cls.read_text(config, "llama", where))

    @staticmethod
    def read_text(config: LlavaConfig, model_type: str, where: Path) -> tuple[TextConfig, DecoderConfig]:
        """The text config, of `model_type` where it says none, and its decoder, tied where either config says so."""
        text = read_text_config({"model_type": model_type, **(config.text_config or {})}, where, "text_config.")
        text.check_token(where, "image_token_index", config.image_token_index)
        return text, text.decoder(where, "text_config.", tied=config.tie_word_embeddings or text.tie_word_embeddings)

    @property
    def text_values(self) -> dict[str, Any]:
        """The text config, with what it leaves out."""
        return {**self.text.defaults(), **(self.config.text_config or {})}

    @property
    def where(self) -> Path:
        """config.json, for errors."""
        return self.checkpoint.path / "config.json"

    @property
    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        return self.vision.inputs

    def vision_tower(self) -> nn.Module:
        assert isinstance(self.vision, ClipConfig)
        return VisionTower(self.vision, self.layers(), self.decoder.hidden_size, self.config.multimodal_projector_bias)

    def layers(self) -> int:
        """Blocks of the tower up to the layer that is read.

        Raises:
            ExportError: several layers are read, or one that is not there.
        """
        layer = self.config.vision_feature_layer
        if not isinstance(layer, int):
            raise ExportError(
                f"{self.where}: vision_feature_layer is {layer}, the tower gives one layer. Use another checkpoint."
            )
        return self.vision.layers(layer, self.where)

    def checkpoint_keys(self, name: str) -> Sequence[str]:
        """Published files have the first spelling, versions of transformers 5 write the others."""
        part, _, rest = name.partition(".")
        if name == "language_model.lm_head.weight":
            return (name, "lm_head.weight")
        if part == "language_model":
            return (f"language_model.model.{rest}", f"model.{name}")
        tower = rest.removeprefix("vision_tower.")
        spellings = (rest,) if tower == rest else (f"vision_tower.vision_model.{tower}", rest)
        return (*spellings, *(f"model.{spelling}" for spelling in spellings))

    def prompt(self) -> PromptEntry:
        generation = read_generation(self.checkpoint, self.decoder.vocab_size, self.text_values)
        video = self.video_token_id
        return PromptEntry(
            chat_template=self.checkpoint.chat_template(),
            image_token=self.checkpoint.token(self.image_token_id),
            video_token=None if video is None else self.checkpoint.token(video),
            template_tokens=self.checkpoint.template_tokens(),
            **generation._asdict(),
        )

    @property
    def image_token_id(self) -> int:
        """The placeholder of images."""
        return self.config.image_token_index

    @property
    def video_token_id(self) -> int | None:
        """The placeholder of videos; None where the model takes none."""
        return None

    def processor(self) -> PixelConstants:
        images = Preprocessing.of_images(self.checkpoint, {"do_center_crop": True, "size": 224, "crop_size": 224})
        pads = images.check_type("LlavaImageProcessor", "CLIPImageProcessor") == "LlavaImageProcessor"
        images.check("do_pad", images.keys.do_pad, (True, False, None) if pads else (False, None))
        if images.keys.do_pad:  # to a square, which is resized to a square
            images.check("do_resize with do_pad", images.keys.do_resize, (True,))
            images.check_colour()
        images.check("use_square_size", images.keys.use_square_size, (False, None))
        side = self.vision.image_size
        if images.keys.do_center_crop:
            images.check("crop_size", images.sides("crop_size", square=True), ({"height": side, "width": side},))
        return images.build(
            LlavaConstants,
            image_size=side,
            patch_size=self.vision.patch_size,
            size=tuple(self._size(images)),
            do_center_crop=bool(images.keys.do_center_crop),
            do_pad=bool(images.keys.do_pad),
            image_token_id=self.image_token_id,
            **asdict(images.pixels()),
        )

    def _size(self, images: Preprocessing) -> list[int]:
        """Of the resized image: the shorter side, or height and width.

        Raises:
            ExportError: it has another form, or makes no square that the tower takes.
        """
        sides, side = images.sides("size"), self.vision.image_size
        names = tuple(sorted(sides))
        images.check("form of size", names, (("shortest_edge",), ("height", "width")))
        size = [sides["shortest_edge"]] if names == ("shortest_edge",) else [sides["height"], sides["width"]]
        if images.keys.do_pad:
            images.check("number of sides in size with do_pad", len(set(size)), (1,))
        if images.keys.do_resize and not images.keys.do_center_crop:
            images.check("size without do_center_crop", size, ([side], [side, side]))
        if max(size) > _LARGEST_RESIZE * side:
            raise ExportError(
                f"{images.where}: size is {size}, expected at most {_LARGEST_RESIZE} times the {side} pixels of the tower. Use "
                "the file that belongs to the weights."
            )
        return size

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for case, feeds in self.vision.cases(random):
            yield f"{case} images", feeds

    def reference(self) -> LlavaReference:
        return LlavaReference(self.checkpoint.path, self.config.vision_feature_layer)


class VisionTower(nn.Module):
    """CLIP up to the layer that is read, then the projector."""

    def __init__(self, vision: ClipConfig, layers: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.vision_tower = ClipTower(vision, layers)
        self.multi_modal_projector = Projector(vision.hidden_size, hidden_size, bias)

    def forward(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        """`[frames * patches, hidden_size]`; see `ClipTower`."""
        return self.multi_modal_projector(self.vision_tower(pixel_values, patch_indices)).flatten(0, 1)


class Projector(nn.Module):
    """Features to the width of the decoder; two layers with a GELU between them."""

    def __init__(self, vision_size: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.linear_1 = Linear(vision_size, hidden_size, bias)
        self.linear_2 = Linear(hidden_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(x)))


class LlavaReference:
    """transformers' model in float32 with eager attention; see `Reference`."""

    architecture: ClassVar[str] = "LlavaForConditionalGeneration"

    def __init__(self, path: Path, feature_layer: int | list[int]) -> None:
        import transformers

        architecture = getattr(transformers, self.architecture)
        with quiet_transformers():
            model = architecture.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self.model = model.eval().requires_grad_(False)
        self._feature_layer = feature_layer

    @torch.no_grad()
    def visual_embeds(self, feeds: Mapping[str, np.ndarray]) -> Tensor:
        return self.model.model.multi_modal_projector(self.features(feeds)[:, 1:]).flatten(0, 1)

    def features(self, feeds: Mapping[str, np.ndarray]) -> Tensor:
        """The hidden states of the tower that are read."""
        assert isinstance(self._feature_layer, int)  # or there would be no graph
        return hidden_state(self.model.model.vision_tower, feeds, self._feature_layer)

    @torch.no_grad()
    def text_embeds(self, input_ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(input_ids)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> ReferenceOutput:
        # Without a mask, positions that do not count up by one would be taken for several sequences packed into one.
        mask = torch.ones(1, len(inputs_embeds), dtype=torch.long)
        output = self.model.model.language_model(
            inputs_embeds=inputs_embeds[None],
            attention_mask=mask,
            position_ids=position_ids,
            use_cache=False,
            output_attentions=True,
        )
        logits = self.model.lm_head(output.last_hidden_state)[0]
        return ReferenceOutput(logits, tuple(output.attentions))

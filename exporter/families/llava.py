"""LLaVA-1.5: every fact about the family that the exporter needs. Its `model_type` is `llava`; LLaVA-OneVision builds on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from foveate.engines import ExportError, PromptEntry, TensorSpec
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.clip import ClipConfig, ClipTower
from foveate.exporter.config import ModelConfig, because, check_supported, convert
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.family import ReferenceOutput
from foveate.exporter.modules import Linear
from foveate.exporter.quiet import quiet_transformers
from foveate.exporter.siglip import SiglipConfig
from foveate.exporter.text_config import TextConfig, read_text_config

_BICUBIC = 3
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


class _EndTokens(msgspec.Struct, frozen=True):
    """What the prompt needs of generation_config.json or of the text config."""

    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None


class _ShortestEdge(msgspec.Struct, frozen=True):
    """Of the resized image, in pixels."""

    shortest_edge: int


class _Crop(msgspec.Struct, frozen=True):
    """Of what is seen of it, in pixels."""

    height: int
    width: int


class _ImageConfig(msgspec.Struct, frozen=True):
    """What the processor needs of preprocessor_config.json; defaults as in transformers' CLIPImageProcessor."""

    size: _ShortestEdge | int | None = None
    crop_size: _Crop | int | None = None
    do_center_crop: bool = True
    do_pad: bool = False
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: int = _BICUBIC


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
        return (TensorSpec("pixel_values", "float32", ("frames", self.vision.patches, self.vision.patch_values)),)

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
        file = "generation_config.json"
        generation = convert(self.checkpoint.optional_json(file), _EndTokens, self.checkpoint.path / file)
        text = convert(self.text_values, _EndTokens, self.where)
        eos = text.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
        pad = text.pad_token_id if generation.pad_token_id is None else generation.pad_token_id
        if eos is None:
            raise ExportError(f"{self.checkpoint.path} names no 'eos_token_id' in {file} or config.json. Add it.")
        eos_token_ids = (eos,) if isinstance(eos, int) else eos
        video = self.video_token_id
        return PromptEntry(
            chat_template=self.checkpoint.chat_template(),
            image_token=self.checkpoint.token(self.image_token_id),
            video_token=None if video is None else self.checkpoint.token(video),
            eos_token_ids=eos_token_ids,
            pad_token_id=eos_token_ids[0] if pad is None else pad,
            template_tokens=self.checkpoint.template_tokens(),
        )

    @property
    def image_token_id(self) -> int:
        """The placeholder of images."""
        return self.config.image_token_index

    @property
    def video_token_id(self) -> int | None:
        """The placeholder of videos; None where the model takes none."""
        return None

    def processor(self) -> dict[str, Any]:
        where, images = self._preprocessing()
        side = self.vision.image_size
        size = images.size.shortest_edge if isinstance(images.size, _ShortestEdge) else images.size
        crop = (images.crop_size.height, images.crop_size.width) if isinstance(images.crop_size, _Crop) else images.crop_size
        for name, value, expected in (
            ("size", size, (side, None)),
            ("crop_size", crop, ((side, side), side, None)),
            ("do_center_crop", images.do_center_crop, (True,)),
            ("do_pad", images.do_pad, (False,)),
            ("resample", images.resample, (_BICUBIC,)),
        ):
            check_supported(where, name, value, expected)
        return {
            "image_size": side,
            "patch_size": self.vision.patch_size,
            "image_mean": list(images.image_mean),
            "image_std": list(images.image_std),
            "rescale_factor": images.rescale_factor,
            "image_token_id": self.image_token_id,
        }

    def _preprocessing(self) -> tuple[Path, _ImageConfig]:
        """From preprocessor_config.json, or from processor_config.json, where transformers 5 may put it."""
        file = "preprocessor_config.json"
        values = self.checkpoint.optional_json(file)
        if not values:
            file = "processor_config.json"
            values = self.checkpoint.optional_json(file).get("image_processor", {})
        where = self.checkpoint.path / file
        return where, convert(values, _ImageConfig, where)

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for frames in (1, 3):
            shape = (frames, self.vision.patches, self.vision.patch_values)
            yield f"{frames} images", {"pixel_values": random.standard_normal(shape, dtype=np.float32)}

    def reference(self) -> LlavaReference:
        return LlavaReference(self.checkpoint.path, self.config.vision_feature_layer)


class VisionTower(nn.Module):
    """CLIP up to the layer that is read, then the projector."""

    def __init__(self, vision: ClipConfig, layers: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.vision_tower = ClipTower(vision, layers)
        self.multi_modal_projector = Projector(vision.hidden_size, hidden_size, bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[frames * patches, hidden_size]` of `pixel_values [frames, patches, patch_values]`, patches row by row."""
        return self.multi_modal_projector(self.vision_tower(pixel_values)).flatten(0, 1)


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
        """The hidden states of the tower that are read, of patches put together to pictures again."""
        pixels = torch.from_numpy(feeds["pixel_values"])
        vision = self.model.config.vision_config
        size, grid = vision.patch_size, vision.image_size // vision.patch_size
        images = pixels.unflatten(2, (3, size, size)).unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
        images = images.reshape(len(pixels), 3, grid * size, grid * size)
        hidden: Tensor = self.model.model.vision_tower(images, output_hidden_states=True).hidden_states[self._feature_layer]
        return hidden

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

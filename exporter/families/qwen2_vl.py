"""Qwen2-VL: every fact about the family that the exporter needs."""

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
from foveate.engines.format.processors.pixels import patch_values
from foveate.engines.format.processors.qwen2_vl import FRAME_PIXELS, Qwen2VLConstants, most_pixels_at_least, patch_positions
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.config import BELONGING, Layers, ModelConfig, Positive, because, check_multiple, check_supported
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.family import ReferenceOutput
from foveate.exporter.generation import read_generation
from foveate.exporter.modules import LayerNorm, Linear, Rotary, rotate
from foveate.exporter.preprocessing import Preprocessing, check_same_pixels
from foveate.exporter.quiet import quiet_transformers
from foveate.exporter.siglip import ACTIVATIONS
from foveate.exporter.text_config import Qwen2Config, Rope

_NORM_EPS = 1e-6
_VISION_THETA = 10000.0
_MROPE_SECTION = (16, 24, 24)  # where a config has none


class VisionConfig(ModelConfig, frozen=True):
    """`vision_config` of config.json, defaults as in transformers' Qwen2VLVisionConfig; `hidden_size` is the decoder's."""

    depth: Layers = 32
    embed_dim: Positive = 1280
    num_heads: Positive = 16
    mlp_ratio: Positive = 4
    hidden_size: Positive = 3584
    hidden_act: str = "quick_gelu"
    patch_size: Positive = 14
    temporal_patch_size: Positive = 2
    spatial_merge_size: Positive = 2
    rope_parameters: dict[str, Any] | None = None

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "hidden_act": tuple(ACTIVATIONS),
        "in_channels": (None, 3),
        "head_dim": (None,),
        "rope_theta": (None, _VISION_THETA),
        "rope_scaling": (None,),
        "partial_rotary_factor": (None, 1),
    }
    ignored: ClassVar[Mapping[str, str]] = (
        because("of training", "initializer_range")
        | because("older names that transformers does not read", "in_chans", "spatial_patch_size")
        | because("older files say `qwen2_vl`; the family decides", "model_type")
    )
    spellings: ClassVar[Mapping[str, str]] = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}

    def check(self, where: Path, part: str) -> None:
        check_multiple(where, f"{part}embed_dim", self.embed_dim, "num_heads", self.num_heads)
        check_multiple(where, f"{part}embed_dim / num_heads", self.head_dim, "its two axes of rotation", 4)
        rope = Rope.read(self.rope_parameters or {}, where, f"{part}rope_parameters.")
        check_supported(where, f"{part}rope_parameters.rope_type", rope.kind, ("default", "axial"))
        check_supported(where, f"{part}rope_parameters.rope_theta", rope.rope_theta, (None, _VISION_THETA))

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_values(self) -> int:
        return patch_values(self.patch_size, self.temporal_patch_size)


class TextConfig(Qwen2Config, frozen=True):
    """The text part of config.json; defaults as in transformers' Qwen2VLTextConfig."""

    vocab_size: Positive = 152064
    hidden_size: Positive = 8192
    intermediate_size: Positive = 29568
    num_hidden_layers: Layers = 80
    num_attention_heads: Positive = 64
    num_key_value_heads: Positive | None = 8
    rms_norm_eps: float = 1e-5
    eos_token_id: int | tuple[int, ...] | None = 151645

    default_theta: ClassVar[float] = 1000000.0
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "mrope")

    def mrope_section(self, rope: Rope, where: Path, part: str) -> tuple[int, ...]:
        section = rope.mrope_section or _MROPE_SECTION
        half = self.hidden_size // self.num_attention_heads // 2
        check_supported(where, f"{part}head_dim", self.head_dim, (None, 2 * half))  # transformers reads it for rotation alone
        check_supported(where, f"{part}sum of mrope_section", sum(section), (half,), BELONGING)
        return section


class Qwen2VLConfig(ModelConfig, frozen=True):
    """What the rest needs of config.json; defaults as in transformers' Qwen2VLConfig."""

    vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False

    ignored: ClassVar[Mapping[str, str]] = because("nothing in transformers reads it", "vision_token_id")


_IMAGE_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""Fewest and most pixels of an image, the defaults of transformers' Qwen2VLImageProcessor."""
_FRAME_PIXELS = dict(zip(_IMAGE_PIXELS, FRAME_PIXELS, strict=True))
"""Those of a frame where the checkpoint has no config of videos, as published ones. (transformers takes the limits of images
then, up to 16,384 tokens for two frames.)"""


@dataclass(frozen=True)
class Qwen2VL:
    """A Qwen2-VL checkpoint; see `Family`."""

    checkpoint: Checkpoint
    config: Qwen2VLConfig
    vision: VisionConfig
    text: TextConfig
    decoder: DecoderConfig
    model_type: str = "qwen2_vl"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Qwen2VL:
        """Reads config.json, both as published (text keys at the top) and as transformers 5 saves it (`text_config`).

        Raises:
            ExportError: a key is missing, or asks for what the decoder does not do.
        """
        where = checkpoint.path / "config.json"
        config = Qwen2VLConfig.read(checkpoint.config, where)
        part = "" if config.text_config is None else "text_config."
        text = TextConfig.read(checkpoint.config if config.text_config is None else config.text_config, where, part)
        vision = VisionConfig.read(config.vision_config or {}, where, "vision_config.")
        check_supported(where, "vision_config.hidden_size", vision.hidden_size, (text.hidden_size,), BELONGING)
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            text.check_token(where, key, getattr(config, key))
        tied = config.tie_word_embeddings or text.tie_word_embeddings
        return cls(checkpoint, config, vision, text, text.decoder(where, part, tied))

    @property
    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("pixel_values", "float32", ("frames", "patches", self.vision.patch_values)),
            TensorSpec("patch_positions", "int64", ("patches", 2)),
        )

    def vision_tower(self) -> nn.Module:
        return VisionTower(self.vision)

    def checkpoint_keys(self, name: str) -> Sequence[str]:
        """Published files have the first spelling, transformers 5 writes the second."""
        if name == "language_model.lm_head.weight":
            return ("lm_head.weight",)
        part, _, rest = name.partition(".")
        return (f"model.{rest}" if part == "language_model" else name, f"model.{name}")

    def prompt(self) -> PromptEntry:
        config = {**self.text.defaults(), **self.checkpoint.config, **(self.config.text_config or {})}
        generation = read_generation(self.checkpoint, self.decoder.vocab_size, config)
        return PromptEntry(
            chat_template=self.checkpoint.chat_template(),
            image_token=self.checkpoint.token(self.config.image_token_id),
            video_token=self.checkpoint.token(self.config.video_token_id),
            template_tokens=self.checkpoint.template_tokens(),
            **generation._asdict(),
        )

    def processor(self) -> Qwen2VLConstants:
        images, videos = Preprocessing.of_images(self.checkpoint), Preprocessing.of_videos(self.checkpoint)
        images.check_type("Qwen2VLImageProcessor")
        check_same_pixels(images, videos)
        for file in (images, videos):
            self._check(file)
        min_pixels, max_pixels = self._limits(images, _IMAGE_PIXELS)
        video_min_pixels, video_max_pixels = self._limits(videos, _FRAME_PIXELS, videos.about_videos)
        return images.build(
            Qwen2VLConstants,
            patch_size=self.vision.patch_size,
            temporal_patch_size=self.vision.temporal_patch_size,
            merge_size=self.vision.spatial_merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            video_min_pixels=video_min_pixels,
            video_max_pixels=video_max_pixels,
            image_token_id=self.config.image_token_id,
            video_token_id=self.config.video_token_id,
            **asdict(images.pixels()),
        )

    def _check(self, file: Preprocessing) -> None:
        """Refuses a processor that cuts other patches than the tower takes, and what none of transformers' does."""
        vision, keys = self.vision, file.keys
        file.check("patch_size", keys.patch_size, (vision.patch_size,))
        file.check("temporal_patch_size", keys.temporal_patch_size, (vision.temporal_patch_size,))
        file.check("merge_size", keys.merge_size, (vision.spatial_merge_size,))
        file.check("do_center_crop", keys.do_center_crop, (False, None))
        file.check("do_pad", keys.do_pad, (False, None))
        file.check("cap_pixels_per_frame", keys.cap_pixels_per_frame, (False,))

    def _limits(self, file: Preprocessing, default: Mapping[str, int], own: bool = True) -> tuple[int, int]:
        """Fewest and most pixels: `min_pixels` and `max_pixels`, or `size`, as transformers' class has it.

        Args:
            file: where they may stand.
            default: where they don't.
            own: whether the file speaks of this kind; else the defaults hold.

        Raises:
            ExportError: one is missing, or they contradict each other.
        """
        if not own:
            return default["shortest_edge"], default["longest_edge"]
        named = {"shortest_edge": file.keys.min_pixels, "longest_edge": file.keys.max_pixels}
        size = (file.sides("size") or dict(default)) | {key: value for key, value in named.items() if value is not None}
        fewest, most = size.get("shortest_edge", 0), size.get("longest_edge", 0)
        highest = most_pixels_at_least(self.vision.patch_size * self.vision.spatial_merge_size)
        if not 1 <= fewest <= most or fewest > highest:
            raise ExportError(
                f"{file.where}: the fewest pixels of an image (min_pixels, or shortest_edge of size) are {fewest}, the most "
                f"(max_pixels, longest_edge) {most}, expected both, with 1 <= fewest <= most and fewest <= {highest}. Use the "
                "file that belongs to the weights."
            )
        return fewest, most

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        merge = self.vision.spatial_merge_size
        for frames, height, width in ((1, 2 * merge, 3 * merge), (1, 5 * merge, merge), (3, 2 * merge, 2 * merge)):
            pixels = random.standard_normal((frames, height * width, self.vision.patch_values), dtype=np.float32)
            feeds = {"pixel_values": pixels, "patch_positions": patch_positions(height, width, merge)}
            yield f"{frames} x {height} x {width} patches", feeds

    def reference(self) -> Qwen2VLReference:
        return Qwen2VLReference(self.checkpoint.path)


class VisionTower(nn.Module):
    """The vision transformer and its merger. Frames are a batch, because they do not see each other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.rotary = Rotary(config.head_dim // 2, _VISION_THETA)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = Merger(config)

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixel_values)
        angles = self.rotary(patch_positions).flatten(1).expand(x.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, angles)
        return self.merger(x)


class PatchEmbed(nn.Module):
    """The patch convolution as a product: its stride is its kernel, and patches come flattened in its order."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = Linear(config.patch_values, config.embed_dim, bias=False)


class VisionBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.embed_dim, _NORM_EPS)
        self.norm2 = LayerNorm(config.embed_dim, _NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x))


class VisionAttention(nn.Module):
    """Every patch of a frame sees every patch of that frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim, bias=True)
        self.proj = Linear(config.embed_dim, config.embed_dim, bias=True)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = rotate(query, angles).transpose(1, 2), rotate(key, angles).transpose(1, 2)
        output = nn.functional.scaled_dot_product_attention(query, key, value.transpose(1, 2))
        return self.proj(output.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Two layers with GELU, or an approximation of it, between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = Linear(config.embed_dim, config.mlp_ratio * config.embed_dim, bias=True)
        self.fc2 = Linear(config.mlp_ratio * config.embed_dim, config.embed_dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Merger(nn.Module):
    """Each block of neighbouring patches, which come one after the other, becomes one visual token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.width = config.spatial_merge_size**2 * config.embed_dim
        self.ln_q = LayerNorm(config.embed_dim, _NORM_EPS)
        self.mlp = nn.Sequential(
            Linear(self.width, self.width, bias=True), nn.GELU(), Linear(self.width, config.hidden_size, bias=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).reshape(-1, self.width))


class Qwen2VLReference:
    """transformers' model in float32 with eager attention; see `Reference`."""

    def __init__(self, path: Path) -> None:
        from transformers import Qwen2VLForConditionalGeneration

        with quiet_transformers():
            model = Qwen2VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def visual_embeds(self, feeds: Mapping[str, np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(feeds["pixel_values"])
        height, width = (feeds["patch_positions"].max(axis=0) + 1).tolist()
        grid = torch.tensor([[len(pixels), height, width]])
        return self._model.model.visual(pixels.flatten(0, 1), grid_thw=grid).pooler_output

    @torch.no_grad()
    def text_embeds(self, input_ids: Tensor) -> Tensor:
        return self._model.get_input_embeddings()(input_ids)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> ReferenceOutput:
        output = self._model.model.language_model(
            inputs_embeds=inputs_embeds[None], position_ids=position_ids[:, None], use_cache=False, output_attentions=True
        )
        logits = self._model.lm_head(output.last_hidden_state)[0]
        return ReferenceOutput(logits, tuple(output.attentions))

"""Qwen2-VL: every fact about the family that the exporter needs."""

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
from foveate.exporter.config import BELONGING, Layers, ModelConfig, Positive, because, check_multiple, check_supported, convert
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.family import ReferenceOutput
from foveate.exporter.modules import LayerNorm, Linear, Rotary, rotate
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
        return 3 * self.temporal_patch_size * self.patch_size**2


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


class _GenerationConfig(msgspec.Struct, frozen=True):
    """What the prompt needs of generation_config.json."""

    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None


class _Pixels(msgspec.Struct, frozen=True):
    """Limits of the resized image, in pixels; the defaults are those of transformers' Qwen2VLImageProcessor."""

    shortest_edge: int = 56 * 56
    longest_edge: int = 28 * 28 * 1280


class _ImageConfig(msgspec.Struct, frozen=True):
    """What the processor needs of preprocessor_config.json, or of the one of videos."""

    size: _Pixels | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255

    def limits(self, default: _Pixels) -> tuple[int, int]:
        """Fewest and most pixels."""
        size = self.size or default
        return self.min_pixels or size.shortest_edge, self.max_pixels or size.longest_edge


_FRAME_PIXELS = _Pixels(128 * 28 * 28, 768 * 28 * 28)
"""Limits of a frame where the checkpoint has no config of videos, as published ones: those of the authors' qwen-vl-utils and of
transformers' Qwen2VLVideoProcessor. (transformers takes the limits of images then, up to 16,384 tokens for two frames.)"""


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
        file = "generation_config.json"
        generation = convert(self.checkpoint.optional_json(file), _GenerationConfig, self.checkpoint.path / file)
        eos = self.text.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
        pad = self.text.pad_token_id if generation.pad_token_id is None else generation.pad_token_id
        if eos is None:
            raise ExportError(f"{self.checkpoint.path} names no 'eos_token_id' in {file} or config.json. Add it.")
        eos_token_ids = (eos,) if isinstance(eos, int) else eos
        return PromptEntry(
            chat_template=self.checkpoint.chat_template(),
            image_token=self.checkpoint.token(self.config.image_token_id),
            video_token=self.checkpoint.token(self.config.video_token_id),
            eos_token_ids=eos_token_ids,
            pad_token_id=eos_token_ids[0] if pad is None else pad,
            template_tokens=self.checkpoint.template_tokens(),
        )

    def processor(self) -> dict[str, Any]:
        image, video = self._image_config(), self._video_config()
        (min_pixels, max_pixels), (video_min_pixels, video_max_pixels) = image.limits(_Pixels()), video.limits(_FRAME_PIXELS)
        return {
            "patch_size": self.vision.patch_size,
            "temporal_patch_size": self.vision.temporal_patch_size,
            "merge_size": self.vision.spatial_merge_size,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "video_min_pixels": video_min_pixels,
            "video_max_pixels": video_max_pixels,
            "image_mean": list(image.image_mean),
            "image_std": list(image.image_std),
            "rescale_factor": image.rescale_factor,
            "image_token_id": self.config.image_token_id,
            "video_token_id": self.config.video_token_id,
            "vision_start_token_id": self.config.vision_start_token_id,
            "vision_end_token_id": self.config.vision_end_token_id,
        }

    def _image_config(self) -> _ImageConfig:
        """From preprocessor_config.json, or from processor_config.json, where transformers 5 may put it."""
        file = "preprocessor_config.json"
        values = self.checkpoint.optional_json(file)
        if not values:
            file = "processor_config.json"
            values = self.checkpoint.optional_json(file).get("image_processor", {})
        return convert(values, _ImageConfig, self.checkpoint.path / file)

    def _video_config(self) -> _ImageConfig:
        """From video_preprocessor_config.json, or from processor_config.json, where transformers 5 may put it.

        Raises:
            ExportError: frames are normalised in another way than images, which the processor does not do.
        """
        file = "video_preprocessor_config.json"
        values = self.checkpoint.optional_json(file)
        if not values:
            file = "processor_config.json"
            values = self.checkpoint.optional_json(file).get("video_processor", {})
        video, image = convert(values, _ImageConfig, self.checkpoint.path / file), self._image_config()
        for name in ("image_mean", "image_std", "rescale_factor"):
            if name in values and getattr(video, name) != getattr(image, name):
                raise ExportError(
                    f"{self.checkpoint.path / file}: {name} of videos is {getattr(video, name)}, that of images "
                    f"{getattr(image, name)}, expected the same. Use the files that belong together."
                )
        return video

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        merge = self.vision.spatial_merge_size
        for frames, height, width in ((1, 2 * merge, 3 * merge), (1, 5 * merge, merge), (3, 2 * merge, 2 * merge)):
            pixels = random.standard_normal((frames, height * width, self.vision.patch_values), dtype=np.float32)
            feeds = {"pixel_values": pixels, "patch_positions": self.patch_positions(height, width)}
            yield f"{frames} x {height} x {width} patches", feeds

    def patch_positions(self, height: int, width: int) -> np.ndarray:
        """Row and column `[height * width, 2]` int64 of the patches of a grid, in the order of the processor.

        Patches come in blocks of `spatial_merge_size` squared, which the merger makes one visual token.
        """
        merge = self.vision.spatial_merge_size
        grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
        blocks = grid.reshape(height // merge, merge, width // merge, merge, 2).transpose(0, 2, 1, 3, 4)
        return np.ascontiguousarray(blocks.reshape(-1, 2), dtype=np.int64)

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

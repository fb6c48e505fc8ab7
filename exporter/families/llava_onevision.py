"""LLaVA-OneVision: every fact about the family that the exporter needs, where it is not LLaVA-1.5's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from msgspec.structs import asdict
from torch import Tensor, nn

from foveate.engines import ExportError, TensorSpec
from foveate.engines.format.processors.llava_onevision import LARGEST_CANVAS, TAPS, LlavaOnevisionConstants, newline_number
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.config import because
from foveate.exporter.families.llava import Llava, LlavaConfig, LlavaReference, Projector
from foveate.exporter.modules import empty
from foveate.exporter.preprocessing import Preprocessing, check_same_pixels
from foveate.exporter.siglip import SiglipConfig, SiglipTower

_SIDES = range(384, 2305, 384)
_PINPOINTS = tuple((height, width) for height in _SIDES for width in _SIDES)
DEFAULT_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}
"""`vision_config` where a config has none, as transformers has it."""


class LlavaOnevisionConfig(LlavaConfig, frozen=True):
    """What is needed of config.json; defaults as in transformers' LlavaOnevisionConfig."""

    image_token_index: int = 151646
    video_token_index: int = 151647
    vision_feature_layer: int | list[int] = -1
    vision_feature_select_strategy: str = "full"
    vision_aspect_ratio: str = "anyres_max_9"
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = None

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {"vision_feature_select_strategy": ("full",)}
    ignored: ClassVar[Mapping[str, str]] = because("transformers always has the newline", "use_image_newline_parameter")
    spellings: ClassVar[Mapping[str, str]] = {"video_token_id": "video_token_index"}


@dataclass(frozen=True)
class LlavaOnevision(Llava):
    """A LLaVA-OneVision checkpoint; see `Family`."""

    config: LlavaOnevisionConfig
    model_type: str = "llava_onevision"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> LlavaOnevision:
        """Reads config.json.

        Raises:
            ExportError: a key is missing, or asks for what the graphs do not do.
        """
        where = checkpoint.path / "config.json"
        config = LlavaOnevisionConfig.read(checkpoint.config, where)
        vision = SiglipConfig.read(
            DEFAULT_TOWER if config.vision_config is None else config.vision_config, where, "vision_config."
        )
        text, decoder = cls.read_text(config, "qwen2", where)
        text.check_token(where, "video_token_index", config.video_token_index)
        return cls(checkpoint, config, vision, text, decoder)

    @property
    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        return (
            *self.vision.inputs,
            TensorSpec("gather_indices", "int64", ("visual_tokens", TAPS)),
            TensorSpec("gather_weights", "float32", ("visual_tokens", TAPS)),
        )

    def vision_tower(self) -> nn.Module:
        return VisionTower(self.vision, self.layers(), self.decoder.hidden_size, self.config.multimodal_projector_bias)

    @property
    def video_token_id(self) -> int:
        """The placeholder of videos."""
        return self.config.video_token_index

    def processor(self) -> LlavaOnevisionConstants:
        images = self._images()
        max_crops = re.fullmatch(r"anyres_max_([1-9][0-9]*)", self.config.vision_aspect_ratio)
        if max_crops is None:
            raise ExportError(
                f"{self.where}: vision_aspect_ratio is {self.config.vision_aspect_ratio!r}, expected 'anyres_max_N'. "
                "Use another checkpoint."
            )
        return images.build(
            LlavaOnevisionConstants,
            image_size=self.vision.image_size,
            patch_size=self.vision.patch_size,
            image_grid_pinpoints=images.keys.image_grid_pinpoints or (),
            max_crops=int(max_crops[1]),
            image_token_id=self.image_token_id,
            video_token_id=self.video_token_id,
            **asdict(images.pixels()),
        )

    def _images(self) -> Preprocessing:
        """Of images, checked against the model and against those of videos.

        Raises:
            ExportError: they contradict each other, or ask for what the processor does not do.
        """
        side, pinpoints = self.vision.image_size, self.config.image_grid_pinpoints or _PINPOINTS
        defaults = {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": _PINPOINTS}
        images = Preprocessing.of_images(self.checkpoint, defaults)
        videos = Preprocessing.of_videos(self.checkpoint, defaults)
        images.check_type("LlavaOnevisionImageProcessor")
        if any(length < 1 or length % side for pinpoint in pinpoints for length in pinpoint):
            raise ExportError(f"{self.where}: crops of {side} pixels don't tile all of image_grid_pinpoints. Fix them.")
        if not pinpoints or max(map(math.prod, pinpoints)) > LARGEST_CANVAS:
            raise ExportError(
                f"{self.where}: image_grid_pinpoints are {len(pinpoints)}, expected some, of at most {LARGEST_CANVAS} pixels "
                "each. Use the file that belongs to the weights."
            )
        if images.keys.image_grid_pinpoints != pinpoints:
            raise ExportError(
                f"{images.where} has other image_grid_pinpoints than {self.where}. Use the files that belong together."
            )
        for file in (images, videos):
            self._check_sides(file)
        check_same_pixels(images, videos)
        images.check_colour()
        return images

    def _check_sides(self, file: Preprocessing) -> None:
        """Refuses pictures that are no square of the tower's size. What would crop such a square to itself may stand."""
        square = {"height": self.vision.image_size, "width": self.vision.image_size}
        file.check("size", file.sides("size"), (square,))
        if file.keys.crop_size is not None or file.keys.do_center_crop:
            file.check("crop_size", file.sides("crop_size", square=True), (square,))

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        tokens = 11
        for case, feeds in self.vision.cases(random):
            newline = newline_number(*feeds["patch_indices"].shape)
            indices = random.integers(0, newline + 1, (tokens, TAPS))
            indices[-1] = newline
            weights = random.dirichlet(np.ones(TAPS), tokens).astype(np.float32)
            yield f"{tokens} tokens of {case} crops", {**feeds, "gather_indices": indices, "gather_weights": weights}

    def reference(self) -> LlavaOnevisionReference:
        return LlavaOnevisionReference(self.checkpoint.path, self.config.vision_feature_layer)


class VisionTower(nn.Module):
    """Tower and projector for every crop or frame, then the packing of features into visual tokens.

    A visual token is a weighted sum of rows: of the projected features of all crops, one after the other, and of the newline
    behind them. So unpadding, newlines, shrinking and pooling are the same to the graph, and the processor's to choose.
    """

    def __init__(self, config: SiglipConfig, layers: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.vision_tower = SiglipTower(config, layers, post_layernorm=False)
        self.multi_modal_projector = Projector(config.hidden_size, hidden_size, bias)
        self.image_newline = empty(hidden_size)

    def forward(self, pixel_values: Tensor, patch_indices: Tensor, gather_indices: Tensor, gather_weights: Tensor) -> Tensor:
        features = self.multi_modal_projector(self.vision_tower(pixel_values, patch_indices))
        newline = self.image_newline[None]
        rows = torch.cat((features.reshape(-1, newline.shape[1]), newline))
        # One corner after the other: all at once would take four times the memory of the result.
        taps = zip(gather_indices.unbind(1), gather_weights.split(1, dim=1), strict=True)
        first, *others = (nn.functional.embedding(indices, rows) * weights for indices, weights in taps)
        return sum(others, first)


class LlavaOnevisionReference(LlavaReference):
    """transformers' model in float32 with eager attention; see `Reference`."""

    architecture: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"

    @torch.no_grad()
    def visual_embeds(self, feeds: Mapping[str, np.ndarray]) -> Tensor:
        model = self.model.model
        rows = torch.cat((model.multi_modal_projector(self.features(feeds)).flatten(0, 1), model.image_newline[None]))
        return torch.einsum("nk,nkd->nd", torch.from_numpy(feeds["gather_weights"]), rows[feeds["gather_indices"]])

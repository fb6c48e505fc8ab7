"""VILA1.5: each image and each frame of a video is resized to one square and becomes as many visual tokens as any other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from foveate.engines import BundleError, RequestError, VisionShape
from foveate.runtime.processors.pixels import Normalisation
from foveate.runtime.types import Layout, Picture, Visual, VisualKind


class LlavaLlamaConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.processor` of a VILA1.5 bundle.

    Attributes:
        image_size: side of the resized picture in pixels.
        patch_size: side of a patch in pixels; pixels that fill no whole patch are not seen.
        merge_size: patches along each side of a visual token; an odd grid is filled up.
        image_mean, image_std, rescale_factor: how channels are normalised.
        image_token_id: the placeholder of images and of videos.
        frame_separator_ids: the text between two frames of a video.
    """

    image_size: int
    patch_size: int
    merge_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    image_token_id: int
    frame_separator_ids: tuple[int, ...]


class LlavaLlamaProcessor:
    """See `Processor`."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        try:
            self.constants = msgspec.convert(dict(constants), LlavaLlamaConstants)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"the manifest's processor constants are not VILA1.5's: {error}. Export the bundle again."
            ) from error
        self.patch_side = self.constants.image_size // self.constants.patch_size
        self.token_side = math.ceil(self.patch_side / self.constants.merge_size)
        self.frame_tokens = self.token_side**2
        image = self.constants
        self._normalisation = Normalisation(image.image_mean, image.image_std, image.rescale_factor)

    def image(self, image: Image.Image, alone: bool = True) -> Visual:
        """Resizes and normalises an RGB image, bit for bit as transformers' PIL processor of SigLIP does."""
        return self._visual([image], [None], "image")

    def video(self, frames: Sequence[Image.Image], seconds: Sequence[float]) -> Visual:
        """See `Processor.video`: each frame is an image; the times are not told to the model."""
        return self._visual(frames, seconds, "video")

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`: every image takes the same."""
        return self.vision_shape_of_tokens(self.frame_tokens)

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`: as many whole frames as the tokens need."""
        return VisionShape(math.ceil(visual_tokens / self.frame_tokens), self.patch_side**2, visual_tokens)

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. A video is as many images with a separator between them; positions count every token."""
        placeholder = self.constants.image_token_id
        places = np.flatnonzero(input_ids == placeholder)
        if len(places) != len(visuals):
            raise RequestError(
                f"the prompt has {len(places)} placeholders, there are {len(visuals)} images and videos. Give a part for each."
            )
        pieces = np.split(input_ids, np.stack([places, places + 1], axis=1).ravel())
        pieces[1::2] = [self._expanded(visual) for visual in visuals]  # every other piece is a placeholder
        expanded_ids = np.concatenate(pieces)
        visual_indices = np.flatnonzero(expanded_ids == placeholder)
        return Layout(expanded_ids, np.arange(len(expanded_ids))[None], visual_indices, len(expanded_ids))

    def _expanded(self, visual: Visual) -> np.ndarray:
        """`[tokens]` int64: what a placeholder becomes."""
        frame = np.full(self.frame_tokens, self.constants.image_token_id, np.int64)
        separator = np.array(self.constants.frame_separator_ids, np.int64)
        frames = visual.num_tokens // self.frame_tokens
        return np.concatenate([frame, *[separator, frame] * (frames - 1)])

    def _visual(self, frames: Sequence[Image.Image], seconds: Sequence[float | None], kind: VisualKind) -> Visual:
        side = self.constants.image_size
        resized = [frame.resize((side, side), Image.Resampling.BICUBIC) for frame in frames]
        # The model's tokens go column by column, so what grids call a row is a column of the picture.
        grid = (self.token_side, self.token_side)
        tokens = np.arange(len(frames) * self.frame_tokens).reshape(len(frames), *grid).transpose(0, 2, 1)
        shown = zip(resized, tokens, seconds, strict=True)
        pictures = tuple(Picture(self._seen(image), grid, own.flatten(), second) for image, own, second in shown)
        pixels = np.stack([np.asarray(image) for image in resized])
        patches = self._normalisation.square_patches(pixels, self.patch_side, self.constants.patch_size)
        return Visual({"pixel_values": patches}, ((len(frames), *grid),), pictures, kind)

    def _seen(self, image: Image.Image) -> Image.Image:
        """What the visual tokens tile: an odd grid's last row and column of tokens reach past the patches, into black."""
        patch = self.constants.patch_size
        seen = self.patch_side * patch
        side = self.token_side * self.constants.merge_size * patch
        return image.crop((0, 0, seen, seen)).crop((0, 0, side, side))

"""LLaVA-1.5: the middle square of an image, resized, becomes as many visual tokens as any other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from foveate.engines import BundleError, RequestError, VisionShape
from foveate.runtime.processors.pixels import Normalisation
from foveate.runtime.processors.placeholders import expand_placeholders
from foveate.runtime.types import Layout, Picture, Visual

_MAX_ASPECT_RATIO = 200
"""The longer side is resized with the shorter one before it is cropped, so a thin image would take much memory."""


class LlavaConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.processor` of a LLaVA-1.5 bundle.

    Attributes:
        image_size: side of the square in pixels.
        patch_size: side of a patch, which is a visual token, in pixels.
        image_mean, image_std, rescale_factor: how channels are normalised.
        image_token_id: the placeholder of images.
    """

    image_size: int
    patch_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    image_token_id: int


class LlavaProcessor:
    """See `Processor`."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        try:
            self.constants = msgspec.convert(dict(constants), LlavaConstants)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"the manifest's processor constants are not LLaVA-1.5's: {error}. Export the bundle again."
            ) from error
        self.grid_size = self.constants.image_size // self.constants.patch_size
        image = self.constants
        self._normalisation = Normalisation(image.image_mean, image.image_std, image.rescale_factor)

    def image(self, image: Image.Image, alone: bool = True) -> Visual:
        """Resizes the shorter side of an RGB image and cuts out the middle, bit for bit as transformers' PIL processor of CLIP
        does.

        Raises:
            RequestError: one side is more than 200 times the other.
        """
        square = self._middle_square(image)
        patches = self._normalisation.square_patches(np.asarray(square)[None], self.grid_size, self.constants.patch_size)
        side = self.grid_size * self.constants.patch_size
        grid = (self.grid_size, self.grid_size)
        picture = Picture(square.crop((0, 0, side, side)), grid, np.arange(self.grid_size**2))
        return Visual({"pixel_values": patches}, ((1, *grid),), (picture,))

    def video(self, frames: Sequence[Image.Image], seconds: Sequence[float]) -> Visual:
        """See `Processor.video`: there are none."""
        raise RequestError("LLaVA-1.5 takes no videos. Give their frames as images, or use a model of another family.")

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`: every image takes the same."""
        return self.vision_shape_of_tokens(self.grid_size**2)

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`: as many whole images as the tokens need."""
        return VisionShape(math.ceil(visual_tokens / self.grid_size**2), self.grid_size**2, visual_tokens)

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions count all tokens, visual ones too."""
        return expand_placeholders(input_ids, {self.constants.image_token_id: "image"}, visuals)

    def _middle_square(self, image: Image.Image) -> Image.Image:
        side, short, long = self.constants.image_size, min(image.size), max(image.size)
        if long > _MAX_ASPECT_RATIO * short:
            raise RequestError(
                f"image is {image.width} x {image.height} pixels, expected an aspect ratio of at most {_MAX_ASPECT_RATIO}. "
                "Crop it."
            )
        new_long = int(side * long / short)
        width, height = (side, new_long) if image.width <= image.height else (new_long, side)
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))

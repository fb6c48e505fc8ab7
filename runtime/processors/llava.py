"""LLaVA-1.5: the middle square of an image, resized, becomes as many visual tokens as any other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from foveate.engines import RequestError, VisionShape
from foveate.engines.format.processors.llava import LlavaConstants
from foveate.engines.format.processors.pixels import mean_colour, whole_pictures
from foveate.runtime.frames import FrameDefaults
from foveate.runtime.picture import Picture
from foveate.runtime.processors.pixels import Normalisation, cut, resize
from foveate.runtime.processors.placeholders import expand_placeholders
from foveate.runtime.processors.square import resize_in_square
from foveate.runtime.resolution import NO_LIMITS, Resolution
from foveate.runtime.types import Layout, Run, Visual

_MAX_ASPECT_RATIO = 200
"""The longer side is resized with the shorter one before it is cropped, so a thin image would take much memory."""
_MAX_RESIZED_PIXELS = 1 << 26


class LlavaProcessor:
    """See `Processor`."""

    frame_defaults = FrameDefaults()
    most_pixels = None

    def __init__(self, constants: LlavaConstants) -> None:
        self.constants = constants
        self._normalisation = Normalisation(constants)

    def image(self, image: Image.Image, alone: bool = True, resolution: Resolution = NO_LIMITS) -> Visual:
        """Resizes an RGB image and cuts out the middle, as its constants say, bit for bit as transformers' PIL processors of
        CLIP and LLaVA do.

        Raises:
            RequestError: one side is more than 200 times the other, or what is left is no square of the model's size; fewer
                tokens are asked for than an image has, or limits in pixels.
        """
        constants = self.constants
        resolution.refuse_pixels(constants.title)
        resolution.check_tokens(constants.patches, "an image")
        square, grid = self._square(image), (constants.grid_size, constants.grid_size)
        patches = self._normalisation.square_patches(np.asarray(square)[None], constants.grid_size, constants.patch_size)
        side = constants.grid_size * constants.patch_size
        picture = Picture(square.crop((0, 0, side, side)), grid, np.arange(constants.patches))
        feeds = {"pixel_values": patches, "patch_indices": whole_pictures(1, constants.patches)}
        return Visual(feeds, ((1, *grid),), (picture,))

    def video(self, frames: Iterable[Image.Image], seconds: Sequence[float], resolution: Resolution = NO_LIMITS) -> Visual:
        """See `Processor.video`: there are none."""
        raise RequestError("LLaVA-1.5 takes no videos. Give their frames as images, or use a model of another family.")

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`: every image takes the same."""
        return self.vision_shape_of_tokens(self.constants.patches)

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`: as many whole images as the tokens need, or a part of one."""
        patches = self.constants.patches
        return VisionShape(math.ceil(visual_tokens / patches), min(patches, visual_tokens), visual_tokens)

    def part(self, visual: Visual, tokens: np.ndarray) -> list[Run]:
        """See `Tiled.part`: each visual token is a patch."""
        return [Run({name: array[:, tokens] for name, array in visual.feeds.items()}, tokens)]

    def cells(self, visual: Visual) -> list[np.ndarray]:
        """See `Tiled.cells`."""
        return [cut([picture.image for picture in visual.pictures], self.constants.patch_size)]

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions count all tokens, visual ones too."""
        return expand_placeholders(input_ids, {self.constants.image_token_id: "image"}, visuals)

    def _square(self, image: Image.Image) -> Image.Image:
        constants, side = self.constants, self.constants.image_size
        if constants.do_pad:
            image = self._padded(image)
        elif constants.do_resize:
            image = resize(image, *self._resized_size(image), constants)
        if constants.do_center_crop:
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if image.size != (side, side):
            raise RequestError(
                f"image is {image.width} x {image.height} pixels where the model sees {side} x {side}, and this model's "
                "preprocessing does not crop. Give a square image, or one of that size."
            )
        return image

    def _padded(self, image: Image.Image) -> Image.Image:
        side = self.constants.size[0] if self.constants.size else self.constants.image_size
        return resize_in_square(image, side, mean_colour(self.constants.image_mean), self.constants.resample)

    def _resized_size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height."""
        size = self.constants.size or (self.constants.image_size,)
        if len(size) == 2:
            return size[1], size[0]
        short, long = min(image.size), max(image.size)
        new_long = int(size[0] * long / short)
        if long > _MAX_ASPECT_RATIO * short or size[0] * new_long > _MAX_RESIZED_PIXELS:
            raise RequestError(
                f"image is {image.width} x {image.height} pixels, expected an aspect ratio of at most "
                f"{min(_MAX_ASPECT_RATIO, _MAX_RESIZED_PIXELS // size[0] ** 2)}. Crop it."
            )
        return (size[0], new_long) if image.width <= image.height else (new_long, size[0])

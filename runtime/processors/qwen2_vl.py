"""Qwen2-VL: images of any resolution, 2 x 2 patches merged into one visual token, M-RoPE positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from foveate.engines import BundleError, RequestError, VisionShape
from foveate.runtime.types import Layout, Picture, Visual

_MAX_ASPECT_RATIO = 200
_POSITION_AXES = 3  # time, height, width


class Qwen2VLConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.processor` of a Qwen2-VL bundle."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


class Qwen2VLProcessor:
    """See `Processor`."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        try:
            self.constants = msgspec.convert(dict(constants), Qwen2VLConstants)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"the manifest's processor constants are not Qwen2-VL's: {error}. Export the bundle again."
            ) from error
        # An 8-bit channel has 256 values, so a table holds every result. float64 before float32 as transformers computes it.
        levels = (np.arange(256) * self.constants.rescale_factor).astype(np.float32)
        mean = np.array(self.constants.image_mean, np.float32)
        std = np.array(self.constants.image_std, np.float32)
        self._normalised = ((levels[:, None] - mean) / std).T.copy()  # [3, 256]

    def image(self, image: Image.Image) -> Visual:
        """Resizes and normalises an RGB image and cuts it into patches, bit for bit as transformers' PIL processor does.

        Raises:
            RequestError: one side is more than 200 times the other.
        """
        width, height = image.size
        height, width = smart_resize(height, width, self.constants)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        merge = self.constants.merge_size
        rows, columns = height // self.constants.patch_size, width // self.constants.patch_size
        feeds = {
            "pixel_values": self._patches(np.asarray(resized), rows, columns)[None],
            "patch_positions": _patch_positions(rows, columns, merge),
        }
        grid = (rows // merge, columns // merge)
        return Visual(feeds, ((1, *grid),), (Picture(resized, grid, np.arange(grid[0] * grid[1])),))

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`."""
        height, width = smart_resize(height, width, self.constants)
        token_size = self.constants.patch_size * self.constants.merge_size
        return self.vision_shape_of_tokens((height // token_size) * (width // token_size))

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`."""
        return VisionShape(1, visual_tokens * self.constants.merge_size**2, visual_tokens)

    def _patches(self, pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """`[height, width, 3]` uint8 to `[patches, 3 * frames * size * size]` float32, the patches of one token in a row."""
        size, merge, frames = self.constants.patch_size, self.constants.merge_size, self.constants.temporal_patch_size
        blocks = pixels.reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
        blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, size * size)
        patches = np.empty((rows * columns, 3, frames, size * size), np.float32)
        for channel, table in enumerate(self._normalised):
            patches[:, channel] = table[blocks[:, channel]][:, None]  # an image fills both frames of a patch
        return patches.reshape(rows * columns, -1)

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions follow Qwen2-VL's M-RoPE (arXiv 2409.12191, section 2.1): text moves all axes
        on by one per token; an image spans its grid and moves them on by its longer side."""
        placeholders = np.flatnonzero(input_ids == self.constants.image_token_id)
        self._check_placeholders(input_ids, len(placeholders), len(visuals))
        counts, advances = np.ones((2, len(input_ids)), np.int64)
        counts[placeholders] = [visual.num_tokens for visual in visuals]
        advances[placeholders] = [max(visual.grids[0]) for visual in visuals]
        ends = np.cumsum(advances)
        expanded_ids = np.repeat(input_ids, counts)
        position_ids = np.tile(np.repeat(ends - advances, counts), (_POSITION_AXES, 1))
        visual_indices = np.flatnonzero(expanded_ids == self.constants.image_token_id)
        if visuals:
            position_ids[:, visual_indices] += np.concatenate([np.indices(v.grids[0]).reshape(3, -1) for v in visuals], axis=1)
        return Layout(expanded_ids, position_ids, visual_indices, int(ends[-1]))

    def _check_placeholders(self, input_ids: np.ndarray, placeholders: int, images: int) -> None:
        if placeholders != images:
            raise RequestError(
                f"the prompt has {placeholders} image placeholders and {images} images. Give one image part per image."
            )
        if (input_ids == self.constants.video_token_id).any():
            raise RequestError("the prompt has a video placeholder, this foveate takes images only. Send frames as images.")


def smart_resize(height: int, width: int, constants: Qwen2VLConstants) -> tuple[int, int]:
    """Height and width that whole visual tokens tile, within the pixel limits, near the original aspect ratio.

    Qwen2-VL's own rule, with its rounding (half to even).

    Raises:
        RequestError: one side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            f"image is {width} x {height} pixels, expected an aspect ratio of at most {_MAX_ASPECT_RATIO}. Crop it."
        )
    factor = constants.patch_size * constants.merge_size
    rows, columns = round(height / factor), round(width / factor)
    pixels = rows * columns * factor**2
    if pixels > constants.max_pixels:
        shrink = math.sqrt(height * width / constants.max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif pixels < constants.min_pixels:
        grow = math.sqrt(constants.min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def _patch_positions(rows: int, columns: int, merge: int) -> np.ndarray:
    """`[patches, 2]` int64: row and column of each patch, the patches of one token in a row."""
    positions = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return np.ascontiguousarray(positions.transpose(1, 3, 2, 4, 0).reshape(-1, 2))

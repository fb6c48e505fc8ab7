"""Qwen2-VL: images and videos of any resolution, 2 x 2 patches merged into one visual token, M-RoPE positions."""

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

_MAX_ASPECT_RATIO = 200
_POSITION_AXES = 3  # time, height, width


class Qwen2VLConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.processor` of a Qwen2-VL bundle.

    The limits of a frame are those of transformers' Qwen2VLVideoProcessor, where the manifest of an older bundle has none.
    """

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
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28


class Qwen2VLProcessor:
    """See `Processor`."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        try:
            self.constants = msgspec.convert(dict(constants), Qwen2VLConstants)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"the manifest's processor constants are not Qwen2-VL's: {error}. Export the bundle again."
            ) from error
        image = self.constants
        self._normalisation = Normalisation(image.image_mean, image.image_std, image.rescale_factor)

    def image(self, image: Image.Image, alone: bool = True) -> Visual:
        """Resizes and normalises an RGB image and cuts it into patches, bit for bit as transformers' PIL processor does.

        Raises:
            RequestError: one side is more than 200 times the other.
        """
        resized = self._resize(image, self.constants.min_pixels, self.constants.max_pixels)
        # An image fills every frame of a patch.
        return self._visual([resized] * self.constants.temporal_patch_size, [Picture(resized, *self._tiles(resized))], "image")

    def video(self, frames: Sequence[Image.Image], seconds: Sequence[float]) -> Visual:
        """Resizes and normalises frames as `image` does, within the limits of videos, and cuts them into patches that span
        `temporal_patch_size` frames; where the last are too few, the last one is repeated, as transformers does.

        Raises:
            RequestError: one side is more than 200 times the other.
        """
        resized = [self._resize(frame, self.constants.video_min_pixels, self.constants.video_max_pixels) for frame in frames]
        span = self.constants.temporal_patch_size
        pictures = []
        for number, (frame, shown) in enumerate(zip(resized, seconds, strict=True)):
            grid, tokens = self._tiles(frame)
            pictures.append(Picture(frame, grid, tokens + number // span * len(tokens), shown))
        return self._visual([*resized, *[resized[-1]] * (-len(resized) % span)], pictures, "video")

    def _resize(self, image: Image.Image, min_pixels: int, max_pixels: int) -> Image.Image:
        height, width = smart_resize(image.height, image.width, self.constants, min_pixels, max_pixels)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _tiles(self, resized: Image.Image) -> tuple[tuple[int, int], np.ndarray]:
        """Rows and columns of the visual tokens over a picture, and their numbers."""
        size = self.constants.patch_size * self.constants.merge_size
        grid = (resized.height // size, resized.width // size)
        return grid, np.arange(grid[0] * grid[1])

    def _visual(self, frames: Sequence[Image.Image], pictures: Sequence[Picture], kind: VisualKind) -> Visual:
        """Whole temporal patches of frames that are resized already."""
        merge, span = self.constants.merge_size, self.constants.temporal_patch_size
        grid = pictures[0].grid
        rows, columns = grid[0] * merge, grid[1] * merge
        steps = [frames[start : start + span] for start in range(0, len(frames), span)]
        feeds = {
            "pixel_values": np.stack([self._patches(step, rows, columns) for step in steps]),
            "patch_positions": _patch_positions(rows, columns, merge),
        }
        return Visual(feeds, ((len(steps), *grid),), tuple(pictures), kind)

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`."""
        height, width = smart_resize(height, width, self.constants, self.constants.min_pixels, self.constants.max_pixels)
        token_size = self.constants.patch_size * self.constants.merge_size
        return self.vision_shape_of_tokens((height // token_size) * (width // token_size))

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`."""
        return VisionShape(1, visual_tokens * self.constants.merge_size**2, visual_tokens)

    def _patches(self, frames: Sequence[Image.Image], rows: int, columns: int) -> np.ndarray:
        """One temporal patch of RGB frames to `[patches, 3 * frames * size * size]` float32, the patches of one token in a
        row."""
        size, merge = self.constants.patch_size, self.constants.merge_size
        patches = np.empty((rows * columns, 3, len(frames), size * size), np.float32)
        for number, frame in enumerate(frames):
            if number and frame is frames[number - 1]:
                patches[:, :, number] = patches[:, :, number - 1]
                continue
            blocks = np.asarray(frame).reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
            blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, size * size)
            self._normalisation.into(patches[:, :, number], blocks, axis=1)
        return patches.reshape(rows * columns, -1)

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions follow Qwen2-VL's M-RoPE (arXiv 2409.12191, section 2.1): text moves all axes
        on by one per token; an image or video spans its grid and moves them on by its longest side. (transformers 5.23 leaves
        time out of that, so it gives text after a video of more steps than rows and columns positions the video has too.)"""
        placeholders = np.flatnonzero(self._is_visual(input_ids))
        self._check_placeholders(input_ids[placeholders], visuals)
        counts, advances = np.ones((2, len(input_ids)), np.int64)
        counts[placeholders] = [visual.num_tokens for visual in visuals]
        advances[placeholders] = [max(visual.grids[0]) for visual in visuals]
        ends = np.cumsum(advances)
        expanded_ids = np.repeat(input_ids, counts)
        position_ids = np.tile(np.repeat(ends - advances, counts), (_POSITION_AXES, 1))
        visual_indices = np.flatnonzero(self._is_visual(expanded_ids))
        if visuals:
            position_ids[:, visual_indices] += np.concatenate([np.indices(v.grids[0]).reshape(3, -1) for v in visuals], axis=1)
        return Layout(expanded_ids, position_ids, visual_indices, int(ends[-1]))

    def _is_visual(self, input_ids: np.ndarray) -> np.ndarray:
        return np.isin(input_ids, (self.constants.image_token_id, self.constants.video_token_id))

    def _check_placeholders(self, placeholder_ids: np.ndarray, visuals: Sequence[Visual]) -> None:
        kinds = ["video" if id == self.constants.video_token_id else "image" for id in placeholder_ids.tolist()]
        if kinds != [visual.kind for visual in visuals]:
            raise RequestError(
                f"the prompt has placeholders for {_count(kinds)}, the request {_count([v.kind for v in visuals])}, "
                "expected the same in the same order. Give one part for each image and video."
            )


def _count(kinds: Sequence[str]) -> str:
    return f"{kinds.count('image')} images and {kinds.count('video')} videos"


def smart_resize(height: int, width: int, constants: Qwen2VLConstants, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width that whole visual tokens tile, within the pixel limits, near the original aspect ratio.

    Qwen2-VL's own rule, with its rounding (half to even).

    Raises:
        RequestError: one side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            f"image or frame is {width} x {height} pixels, expected an aspect ratio of at most {_MAX_ASPECT_RATIO}. Crop it."
        )
    factor = constants.patch_size * constants.merge_size
    rows, columns = round(height / factor), round(width / factor)
    pixels = rows * columns * factor**2
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def _patch_positions(rows: int, columns: int, merge: int) -> np.ndarray:
    """`[patches, 2]` int64: row and column of each patch, the patches of one token in a row."""
    positions = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    return np.ascontiguousarray(positions.transpose(1, 3, 2, 4, 0).reshape(-1, 2))

"""Qwen2-VL: limits in pixels, and patches in blocks that become one visual token each."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

from foveate.engines.format.manifest import TokenId
from foveate.engines.format.processors.pixels import Count, PixelConstants

FRAME_PIXELS = (128 * 28 * 28, 768 * 28 * 28)
"""Fewest and most pixels of a frame where nothing says others: those of the authors' qwen-vl-utils and of transformers'
Qwen2VLVideoProcessor."""
MOST_TOKENS_AT_LEAST = 16384
"""The most visual tokens that an image may have to grow to; no published checkpoint makes more of one image."""
POSITION_AXES = 3
"""Time, height, width."""
_Pixels = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


class Qwen2VLConstants(PixelConstants, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.processor` of a Qwen2-VL bundle.

    Attributes:
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames that a patch spans.
        merge_size: patches along each side of a visual token.
        min_pixels: fewest pixels of an image.
        max_pixels: most pixels of an image.
        video_min_pixels: fewest pixels of a frame.
        video_max_pixels: most pixels of a frame.
        image_token_id: the placeholder of images.
        video_token_id: the placeholder of videos.
    """

    title: ClassVar[str] = "Qwen2-VL"

    patch_size: Count
    temporal_patch_size: Count
    merge_size: Count
    min_pixels: _Pixels
    max_pixels: _Pixels
    image_token_id: TokenId
    video_token_id: TokenId
    video_min_pixels: _Pixels = FRAME_PIXELS[0]
    video_max_pixels: _Pixels = FRAME_PIXELS[1]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_pixels > self.max_pixels or self.video_min_pixels > self.video_max_pixels:
            raise ValueError("min_pixels is more than max_pixels")
        if max(self.min_pixels, self.video_min_pixels) > self.most_pixels_at_least:
            raise ValueError(f"min_pixels is more than {self.most_pixels_at_least}")

    @property
    def token_size(self) -> int:
        """Side of a visual token in pixels."""
        return self.patch_size * self.merge_size

    @property
    def most_pixels_at_least(self) -> int:
        """The most pixels that an image may have to grow to."""
        return most_pixels_at_least(self.token_size)


def most_pixels_at_least(token_size: int) -> int:
    """The most pixels that an image may have to grow to, by the side of a visual token in pixels."""
    return MOST_TOKENS_AT_LEAST * token_size**2


def patch_positions(rows: int, columns: int, merge_size: int) -> np.ndarray:
    """`[rows * columns, 2]` int64: row and column of each patch of a grid, in their order: block by block, the patches of one
    visual token in a row."""
    positions = np.indices((rows, columns)).reshape(2, rows // merge_size, merge_size, columns // merge_size, merge_size)
    return np.ascontiguousarray(positions.transpose(1, 3, 2, 4, 0).reshape(-1, 2))

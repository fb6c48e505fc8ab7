"""VILA1.5: one square an image or frame, neighbouring patches merged into visual tokens, which go column by column.

The vision graph numbers what it merges: the features of one frame's patches after the other, and behind them a row of zeros.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from foveate.engines.format.manifest import TokenId
from foveate.engines.format.processors.pixels import Count, SquareConstants

MERGE_SIZE = 2
"""Patches along each side of a visual token."""
VIDEO_FRAMES, MOST_VIDEO_FRAMES = 8, 1024
"""How many frames of a video VILA's own code takes where its config does not say, and the most that may be said."""


class LlavaLlamaConstants(SquareConstants, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.processor` of a VILA1.5 bundle.

    Attributes:
        merge_size: patches along each side of a visual token; an odd grid is filled up.
        image_token_id: the placeholder of images and of videos.
        frame_separator_ids: the text between two frames of a video.
        num_video_frames: how many frames of a file the model looks at.
    """

    title: ClassVar[str] = "VILA1.5"

    merge_size: Count
    image_token_id: TokenId
    frame_separator_ids: tuple[TokenId, ...]
    num_video_frames: Count = VIDEO_FRAMES

    @property
    def token_side(self) -> int:
        """Visual tokens along one side."""
        return merged(self.grid_size, self.merge_size)

    @property
    def frame_tokens(self) -> int:
        """Visual tokens of an image or a frame."""
        return self.token_side**2


def merged(grid_size: int, merge_size: int) -> int:
    """Visual tokens along a side of so many patches; an odd grid is filled up."""
    return math.ceil(grid_size / merge_size)


def merged_patches(frames: int, grid_size: int, merge_size: int) -> np.ndarray:
    """`[frames * tokens, merge_size ** 2]` int64: the features that each visual token of whole frames is made of.

    Tokens go column by column, the features of one row by row. Where the grid has no patch any more, it is the row of zeros.
    """
    side, patches = merged(grid_size, merge_size), grid_size**2
    filled = side * merge_size - grid_size
    numbers = np.arange(frames * patches).reshape(frames, grid_size, grid_size)
    numbers = np.pad(numbers, ((0, 0), (0, filled), (0, filled)), constant_values=frames * patches)
    blocks = numbers.reshape(frames, side, merge_size, side, merge_size).transpose(0, 3, 1, 2, 4)
    return blocks.reshape(-1, merge_size**2)

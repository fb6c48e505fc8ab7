"""LLaVA-OneVision: crops that tile a canvas, and visual tokens that are weighted sums of their features.

The vision graph numbers what it sums: the features of one crop after the other, row by row, and behind them the newline.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import msgspec

from foveate.engines.format.manifest import TokenId
from foveate.engines.format.processors.pixels import Count, Side, SquareConstants, mean_colour

TAPS = 4
"""How many features one visual token is a sum of: the corners of a bilinear interpolation."""
LARGEST_CANVAS = 50_000_000
"""In pixels."""


class LlavaOnevisionConstants(SquareConstants, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.processor` of a LLaVA-OneVision bundle.

    Attributes:
        image_size: side of a crop in pixels.
        image_grid_pinpoints: height and width of the canvases that crops may tile.
        max_crops: crops above which the features of high resolution are shrunk to about so many (`anyres_max_N`).
        image_token_id: the placeholder of images.
        video_token_id: the placeholder of videos.
    """

    title: ClassVar[str] = "LLaVA-OneVision"

    image_grid_pinpoints: Annotated[tuple[tuple[Side, Side], ...], msgspec.Meta(min_length=1)]
    max_crops: Count
    image_token_id: TokenId
    video_token_id: TokenId

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(side % self.image_size for pinpoint in self.image_grid_pinpoints for side in pinpoint):
            raise ValueError("image_size does not tile all of image_grid_pinpoints")
        if max(map(math.prod, self.image_grid_pinpoints)) > LARGEST_CANVAS:
            raise ValueError(f"one of image_grid_pinpoints has more than {LARGEST_CANVAS} pixels")
        mean_colour(self.image_mean)


def newline_number(crops: int, patches: int) -> int:
    """The number of the newline behind the features of so many crops of so many patches."""
    return crops * patches

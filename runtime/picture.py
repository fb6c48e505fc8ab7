"""Images and frames as the model saw them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, or a frame of a video, as the model saw it, and the visual tokens that tile it.

    Attributes:
        image: RGB.
        grid: rows and columns of the tokens.
        tokens: `[rows * columns]` int64, row by row: their numbers among the visual tokens of the whole. Frames may share
            tokens.
        seconds: when a frame of a video is shown; None for an image.
    """

    image: Image.Image
    grid: tuple[int, int]
    tokens: np.ndarray
    seconds: float | None = None

    def behind(self, tokens: int) -> Picture:
        """The same picture, with so many visual tokens before its own."""
        return replace(self, tokens=self.tokens + tokens)

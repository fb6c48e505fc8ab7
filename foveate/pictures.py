"""Pictures of what was decided: kept visual tokens bright, dropped ones dimmed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_DIMMED = 0.22
"""Brightness of a dropped token."""


def kept_tokens_picture(image: Image.Image, grid: tuple[int, int], kept: np.ndarray) -> Image.Image:
    """The image with its dropped visual tokens dimmed.

    Args:
        image: any mode and size.
        grid: rows and columns of visual tokens over the image.
        kept: bool `[rows * columns]`, true = kept.
    """
    mask = Image.fromarray(kept.reshape(grid).astype(np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    bright = image.convert("RGB")
    dimmed = bright.convert("L").convert("RGB").point(lambda value: round(value * _DIMMED))
    return Image.composite(bright, dimmed, mask)


def side_by_side(pictures: Sequence[tuple[str, Image.Image]], height: int = 320, title: str = "") -> Image.Image:
    """Pictures in a row, scaled to one height, each with a caption below; `title` stands above all."""
    margin, line = 12, 26
    font = ImageFont.load_default(16)
    scaled = [(text, picture.resize((round(picture.width * height / picture.height), height))) for text, picture in pictures]
    width = margin + sum(picture.width + margin for _, picture in scaled)
    top = margin + (line if title else 0)
    sheet = Image.new("RGB", (width, top + height + line + margin), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin // 2), title, fill="black", font=font)
    left = margin
    for text, picture in scaled:
        sheet.paste(picture, (left, top))
        draw.text((left, top + height + 5), text, fill="black", font=font)
        left += picture.width + margin
    return sheet

"""Draws a scene with Pillow: coloured shapes with text on a muted, textured background."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.scenes.world import COLOURS, Scene, SceneObject

_SUPERSAMPLING = 2
_OUTLINE = (20, 20, 20)


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `scene.width x scene.height` pixels."""
    rng = np.random.default_rng(scene.texture_seed)
    image = Image.fromarray(_texture(rng, scene.width, scene.height))
    for item in scene.objects:
        _draw(image, rng, scene, item)
    return image


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Smooth blotches, stripes and grain in greys and browns; uint8 `[height, width, 3]`."""
    coarse = rng.integers(70, 190, size=(int(rng.integers(3, 9)), int(rng.integers(3, 9))), dtype=np.uint8)
    blotches = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40)
    # A wave along both axes as one product of small vectors: sin(a + b) = sin a cos b + cos a sin b.
    across = np.arange(width) * np.cos(angle) * 2 * np.pi / period
    down = np.arange(height)[:, None] * np.sin(angle) * 2 * np.pi / period
    wave = np.hstack([np.cos(down), np.sin(down)]) @ np.vstack([np.sin(across), np.cos(across)])
    grey = blotches + (rng.uniform(0, 18) * wave).astype(np.float32)
    grey += rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(2, 9))
    tint = rng.uniform(-14, 14, size=3).astype(np.float32)
    picture = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        picture[..., channel] = np.clip(grey + tint[channel], 0, 255)
    return picture


def _draw(image: Image.Image, rng: np.random.Generator, scene: Scene, item: SceneObject) -> None:
    """One object, drawn larger on a tile of its own and scaled down, so that its edges are smooth."""
    cell_width, cell_height = scene.width / scene.columns, scene.height / scene.rows
    side = round(item.size * (cell_width + cell_height) / 2)
    scale = _SUPERSAMPLING
    tile = Image.new("RGBA", (side * scale, side * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(tile)
    shade = tuple(int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in COLOURS[item.colour])
    _draw_shape(draw, item.shape, side * scale, shade)
    tile = tile.resize((side, side), Image.Resampling.BOX)
    left, top = round(item.x * cell_width - side / 2), round(item.y * cell_height - side / 2)
    image.paste(tile, (left, top), tile)
    if item.text:
        _draw_text(image, item.text, round(item.x * cell_width), round(item.y * cell_height), side)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, side: int, fill: tuple[int, ...]) -> None:
    inset, far = 2, side - 3
    style = {"fill": fill, "outline": _OUTLINE, "width": 3}
    if shape == "circle":
        draw.ellipse((inset, inset, far, far), **style)
    elif shape == "square":
        pad = side * 0.06
        draw.rectangle((inset + pad, inset + pad, far - pad, far - pad), **style)
    else:
        draw.polygon([(inset + x * (far - inset), inset + y * (far - inset)) for x, y in _corners(shape)], **style)


@lru_cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a polygon in the unit square."""
    if shape == "triangle":
        return ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0))
    if shape == "diamond":
        return ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5))
    if shape == "cross":
        a, b = 0.3, 0.7
        return ((a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a))
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.24)
        return tuple((float(0.5 + r * np.cos(a)), float(0.5 + r * np.sin(a))) for a, r in zip(angles, radii, strict=True))
    raise ValueError(f"no drawing for shape {shape!r}")


@lru_cache(maxsize=4096)
def _stamp(text: str, pixels: int) -> Image.Image:
    """White text with a dark outline, `pixels` high, on a transparent tile."""
    font = ImageFont.load_default(pixels)
    left, top, right, bottom = font.getbbox(text, stroke_width=2)
    tile = Image.new("RGBA", (int(right - left), int(bottom - top)), (0, 0, 0, 0))
    ImageDraw.Draw(tile).text((-left, -top), text, font=font, fill=(255, 255, 255), stroke_width=2, stroke_fill=(0, 0, 0))
    return tile


def _draw_text(image: Image.Image, text: str, x: int, y: int, side: int) -> None:
    tile = _stamp(text, round(side * (0.42 if len(text) > 1 else 0.6)))
    image.paste(tile, (x - tile.width // 2, y - tile.height // 2), tile)

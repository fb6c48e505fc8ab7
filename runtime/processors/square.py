"""A picture in the middle of a square of one colour, resized, without the square: a thin strip would make a huge one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

_PRECISION_BITS = 32 - 8 - 2
"""Pillow's fixed point for 8-bit channels."""
_CHEAP_PIXELS = 1 << 22
_CHEAP_RATIO = 2
"""The square itself is made where it has few pixels, or not many more than the picture: Pillow is faster than numpy."""
_VALUES_TOGETHER = 1 << 21
"""How many pixels are float64 at a time."""
Colour = tuple[int, int, int]


def resize_in_square(image: Image.Image, side: int, colour: Colour, resample: int) -> Image.Image:
    """An RGB image, put into the middle of a square of its longer side, and that resized to `side x side`.

    Bit for bit what Pillow makes of the square, in memory of the order of the image and of the result. Pillow's two passes
    (libImaging/Resample.c) round each sum of fixed-point products to 8 bits, so the pass across the colour is repeated here in
    whole numbers. (Lines of the colour alone stay what they are: the weights of a place sum up to one, but for the last bits.)
    """
    long, method = max(image.size), Image.Resampling(resample)
    left, top = (long - image.width) // 2, (long - image.height) // 2
    if long == side or long * long <= max(_CHEAP_PIXELS, _CHEAP_RATIO * image.width * image.height):
        square = Image.new("RGB", (long, long), colour)
        square.paste(image, (left, top))
        return square.resize((side, side), method)
    if method is Image.Resampling.NEAREST:
        return Image.fromarray(_nearest(np.asarray(image), long, side, left, top, colour))
    if image.width == long:
        rows = np.asarray(image.resize((side, image.height), method))
        return Image.fromarray(_resampled(rows, long, side, top, colour, method))
    columns = _resampled(np.asarray(image).swapaxes(0, 1), long, side, left, colour, method)
    return Image.fromarray(np.ascontiguousarray(columns.swapaxes(0, 1))).resize((side, side), method)


def _nearest(pixels: np.ndarray, long: int, side: int, left: int, top: int, colour: Colour) -> np.ndarray:
    places = np.asarray(Image.fromarray(np.arange(long, dtype=np.int32)[None]).resize((side, 1), Image.Resampling.NEAREST))[0]
    rows, columns = places - top, places - left
    seen_rows, seen_columns = (rows >= 0) & (rows < len(pixels)), (columns >= 0) & (columns < pixels.shape[1])
    result = np.empty((side, side, 3), np.uint8)
    result[:] = colour
    result[np.ix_(seen_rows, seen_columns)] = pixels[np.ix_(rows[seen_rows], columns[seen_columns])]
    return result


def _resampled(lines: np.ndarray, long: int, side: int, start: int, colour: Colour, method: Image.Resampling) -> np.ndarray:
    """One pass: `[lines, n, 3]` uint8 to `[side, n, 3]`, of `long` lines: those given, from `start` on, and others of the
    colour."""
    result = np.empty((side, *lines.shape[1:]), np.uint8)
    places = list(_weights(long, side, method))
    together = max(1, int(_VALUES_TOGETHER / lines.shape[1] * side / long))
    for begin in range(0, side, together):
        some = places[begin : begin + together]
        first = max(start, some[0][0])
        last = max(first, min(start + len(lines), some[-1][0] + len(some[-1][1])))
        inside = np.zeros((len(some), last - first))
        for row, (place, weights) in zip(inside, some, strict=True):
            own = slice(max(place, first), max(place, first, min(place + len(weights), last)))
            row[own.start - first : own.stop - first] = weights[own.start - place : own.stop - place]
        outside = np.array([weights.sum() for _, weights in some]) - inside.sum(axis=1)
        # Products of 8 and 23 bits: sums are exact in float64.
        total = np.tensordot(inside, lines[first - start : last - start].astype(np.float64), axes=1)
        total += outside[:, None, None] * np.array(colour, np.float64) + (1 << (_PRECISION_BITS - 1))
        result[begin : begin + together] = np.clip(np.floor(total / (1 << _PRECISION_BITS)), 0, 255)
    return result


def _weights(size: int, new_size: int, method: Image.Resampling) -> Iterator[tuple[int, np.ndarray]]:
    """Of each new place, the first old one that counts and the fixed-point weights from there on, as Pillow computes them."""
    function, support = _FILTERS[method]
    scale = size / new_size
    stretch = max(scale, 1.0)
    support *= stretch
    for place in range(new_size):
        centre = (place + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        places = [(number + first - centre + 0.5) * (1.0 / stretch) for number in range(last - first)]
        weights = [function(x) for x in places]
        total = 0.0
        for weight in weights:  # one by one: another order of sums is another last bit
            total += weight
        scaled = np.array(weights) * (1.0 / total) * (1 << _PRECISION_BITS) if total else np.array(weights)
        yield first, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5))


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    x *= math.pi
    return math.sin(x) / x * (0.54 + 0.46 * math.cos(x))


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


_FILTERS: dict[Image.Resampling, tuple[Callable[[float], float], float]] = {
    Image.Resampling.BOX: (_box, 0.5),
    Image.Resampling.BILINEAR: (_bilinear, 1.0),
    Image.Resampling.HAMMING: (_hamming, 1.0),
    Image.Resampling.BICUBIC: (_bicubic, 2.0),
    Image.Resampling.LANCZOS: (_lanczos, 3.0),
}
"""Each filter and how far it reaches, as in Pillow."""

"""A picture in a square of one colour, resized: what Pillow makes of the square, without the square."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.runtime.processors import square
from foveate.runtime.processors.square import resize_in_square

COLOUR = (122, 116, 104)


def of_pillow(image: Image.Image, side: int, colour: tuple[int, int, int], resample: int) -> Image.Image:
    long = max(image.size)
    canvas = Image.new("RGB", (long, long), colour)
    canvas.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
    return canvas.resize((side, side), Image.Resampling(resample))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(1, 150),
    st.booleans(),
    st.integers(1, 80),
    st.integers(0, 5),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_it_is_what_pillow_makes_of_the_square(
    long: int, short: int, wide: bool, side: int, resample: int, colour: tuple[int, int, int], seed: int
) -> None:
    shape = (short, long) if wide else (long, short)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(square, "_CHEAP_PIXELS", 0)
        patch.setattr(square, "_CHEAP_RATIO", 0)
        made = resize_in_square(image, side, colour, resample)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(of_pillow(image, side, colour, resample)))


@pytest.mark.parametrize("size", [(9000, 700), (700, 9000), (5000, 2), (3000, 2000)])
def test_large_pictures_too(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    made = resize_in_square(image, 384, COLOUR, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(of_pillow(image, 384, COLOUR, Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("size", [(65_000, 2), (2, 65_000)])
def test_a_strip_takes_little_memory(size: tuple[int, int]) -> None:
    """Its square would take 17 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = resize_in_square(Image.new("RGB", size, (255, 0, 0)), 384, COLOUR, Image.Resampling.BICUBIC)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert made.size == (384, 384)
    assert made.getpixel((0, 0)) == COLOUR

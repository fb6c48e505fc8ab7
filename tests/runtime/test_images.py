"""Images from anywhere: RGB, or an error that says what is wrong."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.engines import RequestError
from foveate.runtime import ImageLimits, open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_path_bytes_image_and_array_are_the_same(tmp_path: Path) -> None:
    data = encode(Image.fromarray(PIXELS), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.fromarray(PIXELS), PIXELS):
        image = open_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"", "can't be read as an image"),
        (b"no image at all", "can't be read as an image"),
        (encode(Image.fromarray(PIXELS), "PNG")[:200], "can't be read as an image"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:-300], "truncated"),
        (encode(Image.fromarray(PIXELS), "EPS"), "can't be read as an image"),  # Pillow would start Ghostscript
    ],
)
def test_a_broken_file_is_a_request_error(data: bytes, fact: str) -> None:
    with pytest.raises(RequestError, match=fact) as error:
        open_image(data)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_request_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(RequestError, match="not there or is not a file"):
            open_image(path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_corrupt_bytes_give_an_image_or_a_request_error(format: str) -> None:
    data, generator = encode(Image.fromarray(PIXELS), format), random.Random(0)
    for _ in range(100):
        corrupt = bytearray(data[: generator.randint(len(data) // 2, len(data))])
        for _ in range(generator.randint(1, 8)):
            corrupt[generator.randrange(min(len(corrupt), 200))] = generator.randrange(256)
        with contextlib.suppress(RequestError):
            assert open_image(bytes(corrupt), ImageLimits(max_pixels=100_000)).mode == "RGB"


def test_the_pixel_limit_holds_before_anything_is_decoded() -> None:
    header = encode(Image.new("L", (100, 100)), "PNG")[:60]  # too short to decode
    with pytest.raises(RequestError, match=r"has 100 x 100 pixels, the limit is 9999\. Shrink it"):
        open_image(header, ImageLimits(max_pixels=9_999))


@pytest.mark.parametrize("side", [7_100, 9_500, 13_500])
def test_a_decompression_bomb_is_a_request_error_without_a_warning(side: int) -> None:
    data = encode(Image.new("1", (side, side)), "PNG")
    with pytest.raises(RequestError, match="pixels"):
        open_image(data)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = open_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    assert open_image(encode(Image.fromarray(PIXELS), "JPEG", exif=exif)).size == (20, 30)


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = clear.quantize(8)
    greyscale = Image.new("LA", (4, 4), (10, 0))
    for image in (clear, palette, greyscale):
        assert open_image(encode(image, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("RGBA", (4, 4), (255, 0, 0, 255))).getpixel((0, 0)) == (255, 0, 0)


def test_a_transparent_colour_without_alpha_lies_on_white() -> None:
    data = encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_16_bit_grey_is_scaled(dtype: str) -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=dtype)
    mode = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[dtype]
    image = open_image(Image.frombytes(mode, (6, 1), levels.tobytes()))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_a_16_bit_file_is_scaled() -> None:
    data = encode(Image.fromarray(np.full((4, 4), 25_700, np.uint16)), "PNG")
    assert open_image(data).getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "PA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert open_image(Image.new(mode, (5, 4))).mode == "RGB"


def test_cmyk_keeps_its_colours() -> None:
    red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert open_image(red).getpixel((5, 5))[0] > 200 > 60 > open_image(red).getpixel((5, 5))[1]


def test_a_mode_without_a_known_range_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="floating-point"):
        open_image(Image.new("F", (5, 4)))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_an_array_that_is_no_image_is_a_request_error(array: np.ndarray) -> None:
    with pytest.raises(RequestError):
        open_image(array)


def test_an_unknown_source_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="of no known kind"):
        open_image(3.5)  # type: ignore[arg-type]


def test_a_given_image_is_left_as_it_is() -> None:
    image = Image.new("L", (4, 4), 7)
    open_image(image)
    assert (image.mode, image.getpixel((0, 0))) == ("L", 7)

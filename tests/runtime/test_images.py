"""Images from anywhere: RGB, or an error that says what is wrong."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.engines import MachineError, RequestError
from foveate.runtime import ImageLimits, Request, open_image, open_video

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


def test_sources_of_every_kind_give_the_same(tmp_path: Path) -> None:
    data = encode(Image.fromarray(PIXELS), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    with (tmp_path / "a.png").open("rb") as file:
        for source in (
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            file,
            address,
            address.replace(";", ";a=b;", 1),
        ):
            np.testing.assert_array_equal(np.asarray(open_image(source)), PIXELS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "image given as NoneType is of no known kind"),
        ((part for part in ("a", "b")), "image given as generator is of no known kind"),
        (["a.png"], "image given as list is of no known kind"),
        (io.StringIO("text"), "was opened as text. Open it with mode 'rb'"),
        ("http://example.org/a.png", "of the kind 'http:', and nothing is fetched. Give its bytes"),
        (Path("https://example.org/a.png"), "of the kind 'https:', and nothing is fetched"),
        ("S3://bucket/a.png", "of the kind 'S3:', and nothing is fetched"),
        ("file:///home/a.png", "Give the path alone"),
        ("data:image/png,abc", "Give it as data:TYPE;base64,CONTENT"),
        ("data:image/png;base64,a", "content is not base64"),
        ("data:image/png;base64,&&&&", "content is not base64"),
        ("data:image/png;base64," + "AAAA" * 10, "can't be read as an image"),
        (Path("data:image/png;base64,AAAA"), "Give it as a string"),
        ("a\0b.png", "is not there or is not a file"),
    ],
)
def test_what_is_no_image_is_named(source: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["x" * 400_000, "data:image/png;base64," + "A" * 400_001, "http://" + "y" * 400_000])
def test_an_error_shortens_what_it_repeats(source: str) -> None:
    for call in (open_image, open_video):
        with pytest.raises(RequestError) as caught:
            call(source)
        assert len(str(caught.value)) < 500
        assert "characters ..." in str(caught.value)


def test_every_error_is_bounded() -> None:
    error = RequestError(f"'{'x' * 400_000}' is wrong. Mend it.")
    assert len(str(error)) < 2_100
    assert str(error).endswith("is wrong. Mend it.")


def test_an_open_file_above_the_limit_is_refused() -> None:
    data = encode(Image.fromarray(PIXELS), "PNG")
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (io.BytesIO(data), address):
        with pytest.raises(RequestError, match="the limit"):
            open_image(source, ImageLimits(max_bytes=100))


def test_an_array_above_the_limit_is_refused_before_it_is_copied() -> None:
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 20_000, 3))  # one pixel in memory
    tracemalloc.start()
    with pytest.raises(RequestError, match="has 20000 x 20000 pixels"):
        open_image(huge)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_side_above_the_limit_is_refused() -> None:
    with pytest.raises(RequestError, match=r"has 65536 x 1 pixels, the limit of a side is 65535\. Crop it"):
        open_image(Image.new("RGB", (65_536, 1)))


def test_a_photo_of_fifty_megapixels_is_opened() -> None:
    assert open_image(Image.new("L", (8192, 6144))).size == (8192, 6144)


def test_too_little_memory_is_the_machines_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("foveate.runtime.images._to_rgb", fail)
    with pytest.raises(MachineError, match="not enough memory to open image given as encoded bytes"):
        open_image(encode(Image.fromarray(PIXELS), "PNG"))


def test_a_request_takes_what_users_have(tmp_path: Path) -> None:
    data = encode(Image.fromarray(PIXELS), "PNG")
    for one in (data, bytearray(data), memoryview(data), io.BytesIO(data), PIXELS, Image.fromarray(PIXELS), "a.png"):
        assert len(Request.ask("What?", one).images) == len(Request.ask("What?", videos=one).videos) == 1
    assert Request.ask("What?", (f"{number}.png" for number in range(3))).images == ("0.png", "1.png", "2.png")
    assert Request.ask("What?", None, videos=None).images == ()
    for options in ({"images": 7}, {"videos": 7}):
        with pytest.raises(RequestError, match=r"is 7, expected one of (images|videos) or a list of them"):
            Request.ask("What?", **options)

"""Opening images that may come from anywhere."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from foveate.engines import RequestError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, an encoded file, a PIL image, or uint8 pixels `[height, width]` or `[height, width, 1 | 3 | 4]`."""


# Pillow knows more, among them some that run another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class ImageLimits:
    """What is too large to open. `max_pixels` is compared with the file's header, before anything is decoded."""

    max_pixels: int = 50_000_000


def open_image(source: ImageSource, limits: ImageLimits | None = None) -> Image.Image:
    """Opens an image as 8-bit RGB.

    The first frame of an animation; turned as its EXIF tag says; transparency on white; 16-bit grey scaled to 8 bit.

    Raises:
        RequestError: missing, unreadable, truncated, above the limits, or of a kind that has no RGB form.
    """
    name = _describe(source)
    try:
        with warnings.catch_warnings():
            # Our own limit stands in for the warning of bombs; a file too broken to read raises anyway.
            warnings.simplefilter("ignore")
            with _opened(source, name) as image:
                _check_size(image, limits or ImageLimits(), name)
                return _to_rgb(ImageOps.exif_transpose(image))
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        fact = str(error).rstrip(".")
        raise RequestError(f"{name} has more pixels than Pillow opens: {fact}. Shrink the image.") from error
    except Exception as error:  # a broken file makes Pillow's decoders raise about anything
        fact = str(error).replace("\n", " ") or type(error).__name__
        raise RequestError(f"{name} can't be read as an image: {fact}. Give a whole file: {', '.join(_FORMATS)}.") from error


def _describe(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return f"image '{os.fspath(source)}'"
    return "image given as encoded bytes" if isinstance(source, bytes) else f"image given as {type(source).__name__}"


@contextmanager
def _opened(source: ImageSource, name: str) -> Iterator[Image.Image]:
    """The image, not decoded yet; a file that is opened for it is closed at the end, also when it is no image."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield _from_array(source)
    elif isinstance(source, bytes):
        yield Image.open(io.BytesIO(source), formats=_FORMATS)
    elif not isinstance(source, str | os.PathLike):
        raise RequestError(f"{name} is of no known kind. Give a path, encoded bytes, a PIL image or a uint8 array.")
    elif not Path(source).is_file():
        raise RequestError(f"{name} is not there or is not a file. Check the path.")
    else:
        with Path(source).open("rb") as file:
            yield Image.open(file, formats=_FORMATS)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped:
        raise RequestError(
            f"image array is {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, width] or [height, width, 3 or 4]. "
            "Convert it first."
        )
    return Image.fromarray(pixels)


def _check_size(image: Image.Image, limits: ImageLimits, name: str) -> None:
    width, height = image.size
    if width * height == 0:
        raise RequestError(f"{name} is {width} x {height} pixels, so it is empty. Give another image.")
    if width * height > limits.max_pixels:
        raise RequestError(
            f"{name} has {width} x {height} pixels, the limit is {limits.max_pixels}. Shrink it or raise max_pixels."
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise RequestError("image of floating-point pixels has no known range. Convert it to 8 bit first.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scales 0..65535 to 0..255; Pillow's own conversion clips at 255."""
    pixels = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")

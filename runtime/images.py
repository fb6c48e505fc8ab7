"""Opening images that may come from anywhere."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.engines import MachineError, RequestError
from foveate.engines.errors import reason_of, shorten

EncodedFile = bytes | bytearray | memoryview | BinaryIO
"""An encoded file: its bytes, or an open file that gives them, which is read from where it stands and put back there."""
ImageSource = str | os.PathLike[str] | EncodedFile | Image.Image | np.ndarray
"""A path, an encoded file, a `data:` address of one, a PIL image, or uint8 pixels `[height, width]` or
`[height, width, 1 | 3 | 4]`."""

# Pillow knows more, among them some that run another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_DATA = re.compile(r"data:[\w.+/-]*(;[\w.+=-]+)*;base64,", re.ASCII)
_LONGEST_HEAD = 256
"""Characters in which a `data:` address has to come to its content: more may be megabytes, and to look stops all threads."""
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/|(data):", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class ImageLimits:
    """What is too large to open.

    Attributes:
        max_pixels: compared with the file's header, before anything is decoded or copied. A camera of "50 megapixels" makes up
            to 8192 x 6144.
        max_side: of the longer side in pixels; what a resize needs grows with it, however thin the image is.
        max_bytes: of a file that is given as an open file or an address.
    """

    max_pixels: int = 50_400_000
    max_side: int = 65_535
    max_bytes: int = 1 << 29


def open_image(source: ImageSource, limits: ImageLimits | None = None) -> Image.Image:
    """Opens an image as 8-bit RGB.

    The first frame of an animation; turned as its EXIF tag says; transparency on white; 16-bit grey scaled to 8 bit.

    Raises:
        RequestError: missing, unreadable, truncated, above the limits, or of a kind that has no RGB form.
        MachineError: there is not enough memory for it.
    """
    name, limits = describe(source, "image"), limits or ImageLimits()
    try:
        with warnings.catch_warnings():
            # Our own limit stands in for the warning of bombs; a file too broken to read raises anyway.
            warnings.simplefilter("ignore")
            with _opened(source, name, limits) as image:
                _check_size(*image.size, limits, name)
                return _to_rgb(ImageOps.exif_transpose(image))
    except RequestError:
        raise
    except MemoryError as error:
        raise MachineError(f"there is not enough memory to open {name}. Shrink the image or free memory.") from error
    except UnidentifiedImageError as error:
        raise RequestError(
            f"{name} can't be read as an image: it is of no known kind. Give a whole file: {', '.join(_FORMATS)}."
        ) from error
    except Image.DecompressionBombError as error:
        fact = str(error).rstrip(".")
        raise RequestError(f"{name} has more pixels than Pillow opens: {fact}. Shrink the image.") from error
    except Exception as error:  # a broken file makes Pillow's decoders raise about anything
        fact = shorten(str(error).replace("\n", " ") or type(error).__name__)
        raise RequestError(f"{name} can't be read as an image: {fact}. Give a whole file: {', '.join(_FORMATS)}.") from error


def describe(source: object, kind: str) -> str:
    """What an error calls an image or a video."""
    if isinstance(source, str | os.PathLike):
        return f"{kind} '{shorten(os.fspath(source))}'"
    return f"{kind} given as encoded bytes" if isinstance(source, bytes) else f"{kind} given as {type(source).__name__}"


def is_encoded(source: object) -> TypeGuard[EncodedFile]:
    """Whether it is an encoded file that is given as itself, not by its path."""
    return isinstance(source, bytes | bytearray | memoryview) or callable(getattr(source, "read", None))


def read_encoded(source: EncodedFile, max_bytes: int, name: str) -> bytes:
    """The bytes of an encoded file.

    Raises:
        RequestError: it has too many, or is no file of bytes.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    start = source.tell() if source.seekable() else None
    content = source.read(max_bytes + 1)
    if not isinstance(content, bytes):
        raise RequestError(f"{name} was opened as text. Open it with mode 'rb'.")
    if start is not None:
        source.seek(start)
    if len(content) > max_bytes:
        raise RequestError(f"{name} has more than {max_bytes} bytes, which is the limit. Cut or shrink it.")
    return content


def check_bytes(size: int, max_bytes: int, name: str) -> None:
    """
    Raises:
        RequestError: a file has more bytes than it may.
    """
    if size > max_bytes:
        raise RequestError(f"{name} has {size} bytes, the limit is {max_bytes}. Cut or shrink it.")


def read_address(source: str | os.PathLike[str], max_bytes: int, name: str) -> bytes | None:
    """The content of a `data:` address; None for a path.

    Raises:
        RequestError: it is another address, from which nothing is fetched, or its content is broken or too large.
    """
    text = os.fspath(source)
    found = _ADDRESS.match(text) if isinstance(text, str) else None
    if found is None:
        return None
    head = _DATA.match(text, 0, _LONGEST_HEAD)
    if found[2] and isinstance(source, os.PathLike):  # which leaves out some slashes
        raise RequestError(f"{name} is an address that was made a path, which changes it. Give it as a string, or save a file.")
    if head is None:
        remedy = "Give the path alone." if found[0].lower() == "file:/" else "Give its bytes, or the path of a copy."
        remedy = "Give it as data:TYPE;base64,CONTENT, or as bytes." if found[2] else remedy
        raise RequestError(f"{name} is an address of the kind '{found[1] or found[2]}:', and nothing is fetched. {remedy}")
    check_bytes((len(text) - head.end()) // 4 * 3, max_bytes, name)
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except binascii.Error as error:
        raise RequestError(f"{name} is an address whose content is not base64: {reason_of(error)}. Encode it again.") from error


@contextmanager
def _opened(source: ImageSource, name: str, limits: ImageLimits) -> Iterator[Image.Image]:
    """The image, not decoded yet; a file that is opened for it is closed at the end, also when it is no image."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield _from_array(source, limits, name)
    elif isinstance(source, str | os.PathLike):
        content = read_address(source, limits.max_bytes, name)
        if content is None and not Path(source).is_file():
            raise RequestError(f"{name} is not there or is not a file. Check the path.")
        with Path(source).open("rb") if content is None else io.BytesIO(content) as file:
            yield Image.open(file, formats=_FORMATS)
    elif is_encoded(source):
        yield Image.open(io.BytesIO(read_encoded(source, limits.max_bytes, name)), formats=_FORMATS)
    else:
        raise RequestError(
            f"{name} is of no known kind. Give a path, encoded bytes, an open file, a PIL image or a uint8 array."
        )


def _from_array(pixels: np.ndarray, limits: ImageLimits, name: str) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped:
        raise RequestError(
            f"image array is {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, width] or [height, width, 3 or 4]. "
            "Convert it first."
        )
    _check_size(pixels.shape[1], pixels.shape[0], limits, name)
    return Image.fromarray(pixels)


def _check_size(width: int, height: int, limits: ImageLimits, name: str) -> None:
    if width * height == 0:
        raise RequestError(f"{name} is {width} x {height} pixels, so it is empty. Give another image.")
    if width * height > limits.max_pixels:
        raise RequestError(
            f"{name} has {width} x {height} pixels, the limit is {limits.max_pixels}. "
            "Shrink it, or raise ImageLimits.max_pixels.",
            options=("limits",),
        )
    if max(width, height) > limits.max_side:
        raise RequestError(
            f"{name} has {width} x {height} pixels, the limit of a side is {limits.max_side}. Crop it, or raise max_side."
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

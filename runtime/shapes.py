"""Which sizes engines are built for, from what users know: visual tokens, or sizes of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from msgspec import structs

from foveate.engines import Manifest, OptionError, Range, ShapeProfile
from foveate.engines.builds.ranges import vision_ranges
from foveate.engines.format.processors import read_constants
from foveate.runtime.processors import Processor, open_processor

_LARGEST_DEFAULT_TOKENS, _USUAL_TOKENS = 4096, 1024
_LARGE_PIXELS = 1 << 14
_SIZES = re.compile(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}(:[1-9][0-9]{0,5}x[1-9][0-9]{0,5}){0,2}")

ImageSizes = Sequence[tuple[int, int]]
"""Width and height in pixels of the smallest and the largest image, or of the smallest, the usual and the largest."""


def parse_image_sizes(text: str) -> list[tuple[int, int]]:
    """Reads `448x448:1344x1344`, `448x448:672x672:1344x1344`, or one size.

    Raises:
        OptionError: the text is none of these.
    """
    if not _SIZES.fullmatch(text):
        fact = f"'{text}' is no range of image sizes, expected one to three WIDTHxHEIGHT"
        raise OptionError(f"{fact}. Use 448x448:1344x1344.", options=("image_size",))

    return [(int(width), int(height)) for width, height in (size.split("x") for size in text.split(":"))]


def plan_shapes(
    manifest: Manifest,
    visual_tokens: Range | None = None,
    image_sizes: ImageSizes | None = None,
    images: int = 1,
    frames: Range | None = None,
    **options: Any,
) -> ShapeProfile:
    """The sizes of engines that serve certain requests.

    Args:
        manifest: of the bundle.
        visual_tokens: of one prompt; None takes them from the image sizes.
        image_sizes: of each image; None takes any image, of up to 4,096 visual tokens.
        images: the most images in a prompt; counts with `image_sizes`.
        frames: of one run of the vision graph, where videos are served; None takes those of an image.
        **options: `text_tokens`, `new_tokens`, `batch` of `ShapeProfile`.

    Raises:
        OptionError: a range that contradicts itself, or visual tokens and image sizes at once.
        RequestError: the family can't take images of such a shape.
    """
    processor = open_processor(manifest.family, read_constants(manifest.family, manifest.processor))
    if visual_tokens is not None and image_sizes is not None:
        fact = "there are both visual tokens and image sizes, and each follows from the other"
        raise OptionError(f"{fact}. Give one of them.", options=("visual_tokens", "image_size"))
    if image_sizes is None and images != 1:
        raise OptionError(
            f"images is {images}, which counts with image sizes only. Give a range of visual tokens for all of them.",
            options=("visual_tokens",),
        )
    if image_sizes is not None:
        return _from_image_sizes(processor, image_sizes, images, frames, options)
    visual_tokens = visual_tokens or _any_image(processor)
    shapes = ShapeProfile.from_visual_tokens(visual_tokens, processor.vision_shape_of_tokens, **options)
    return shapes if frames is None else structs.replace(shapes, frames=_both(frames, shapes.frames))


def _both(wide: Range, other: Range) -> Range:
    """The first range, grown until it holds the other."""
    return wide.including(other.min).including(other.max)


def _any_image(processor: Processor) -> Range:
    most = min(processor.vision_shape(_LARGE_PIXELS, _LARGE_PIXELS).visual_tokens, _LARGEST_DEFAULT_TOKENS)
    return Range(1, min(_USUAL_TOKENS, most), most)


def _from_image_sizes(
    processor: Processor, sizes: ImageSizes, images: int, frames: Range | None, options: dict[str, Any]
) -> ShapeProfile:
    shapes = [processor.vision_shape(width, height) for width, height in sizes]
    smallest, largest = shapes[0], shapes[-1]
    part = processor.vision_shape_of_tokens(1)  # and a small picture: `Request.encode`
    usual = shapes[1] if len(shapes) == 3 else largest
    most = largest.visual_tokens * images * (1 if frames is None else frames.max)
    vision = vision_ranges((part, usual, largest))
    if frames is not None:
        vision["frames"] = _both(frames, vision["frames"])
    return ShapeProfile(visual_tokens=Range(smallest.visual_tokens, usual.visual_tokens, most), **vision, **options)

"""Constants that every family has: how 8-bit pixels become numbers, and how squares are cut into patches."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import numpy as np

Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]
"""How many pixels, patches or frames make one of the next."""
Side = Annotated[int, msgspec.Meta(ge=1, le=8192)]
"""In pixels."""
FILTERS = range(6)
"""Pillow's numbers of its resampling filters."""
Channels = tuple[float, float, float]
Colour = tuple[int, int, int]
LARGEST, SMALLEST = 1e6, 1e-6
"""Of what values are multiplied with and divided by: far from what float32 can't hold."""


class PixelConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How pixels become numbers, in every family's `manifest.processor`; named as in transformers' image processors.

    Attributes:
        do_resize: whether images are resized; those of a model that does not have to come in a size that it takes.
        resample: Pillow's number of the filter.
        do_rescale: whether values of 0 to 255 are multiplied.
        rescale_factor: what they are multiplied with.
        do_normalize: whether the mean of its channel is then taken from a value, and the result divided.
        image_mean: of red, green and blue, what is taken away.
        image_std: of red, green and blue, what is divided by.
    """

    title: ClassVar[str]
    """The family's name, for errors."""

    image_mean: Channels
    image_std: Channels
    rescale_factor: float
    do_resize: bool = True
    resample: Annotated[int, msgspec.Meta(ge=FILTERS[0], le=FILTERS[-1])] = 3
    do_rescale: bool = True
    do_normalize: bool = True

    def __post_init__(self) -> None:
        if not all(abs(value) <= LARGEST for value in (*self.image_mean, *self.image_std, self.rescale_factor)):
            raise ValueError(f"image_mean, image_std or rescale_factor is not finite or beyond {LARGEST:g}")
        if any(abs(value) < SMALLEST for value in self.image_std):
            raise ValueError(f"image_std is 0 in a channel, or below {SMALLEST:g}")


class SquareConstants(PixelConstants, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of families whose vision tower sees squares of one size.

    Attributes:
        image_size: side of a square in pixels.
        patch_size: side of a patch in pixels; pixels that fill no whole patch are not seen.
    """

    image_size: Side
    patch_size: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError("patch_size is more than image_size")

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return whole_patches(self.image_size, self.patch_size)

    @property
    def patches(self) -> int:
        """Patches of one square, row by row."""
        return self.grid_size**2


def whole_patches(side: int, patch_size: int) -> int:
    """Patches along a side in pixels; pixels that fill no whole patch are not seen."""
    return side // patch_size


def whole_pictures(pictures: int, patches: int) -> np.ndarray:
    """`[pictures, patches]` int64: the places of all patches of pictures, row by row."""
    return np.tile(np.arange(patches), (pictures, 1))


def patch_values(patch_size: int, frames: int = 1) -> int:
    """Numbers of one flattened RGB patch, in the order channel, frame, row, column."""
    return 3 * frames * patch_size**2


def mean_colour(mean: Channels) -> Colour:
    """The colour that images are padded with, as transformers rounds it.

    Raises:
        ValueError: the mean is no colour.
    """
    red, green, blue = (int(value * 255) for value in mean)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError("image_mean is no colour, with which images are padded")
    return red, green, blue

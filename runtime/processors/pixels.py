"""From 8-bit pixels to the normalised patches that vision towers take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from PIL import Image

from foveate.engines import BundleError, RequestError

Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]
"""How many pixels, patches or frames make one of the next."""
Side = Annotated[int, msgspec.Meta(ge=1, le=8192)]
"""In pixels."""
Channels = tuple[float, float, float]
_LARGEST, _SMALLEST = 1e6, 1e-6
"""Of what values are multiplied with and divided by: far from what float32 can't hold."""
_T = TypeVar("_T", bound="PixelConstants")


class PixelConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How pixels become numbers, in every family's `manifest.processor`; named as in transformers' image processors.

    Attributes:
        do_resize: whether images are resized; those of a model that does not have to come in a size that it takes.
        resample: Pillow's number of the filter.
        do_rescale, rescale_factor: whether values are multiplied, and by what.
        do_normalize, image_mean, image_std: whether the mean of its channel is then taken from a value, and the result divided.
    """

    image_mean: Channels
    image_std: Channels
    rescale_factor: float
    do_resize: bool = True
    resample: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3
    do_rescale: bool = True
    do_normalize: bool = True

    def __post_init__(self) -> None:
        if not all(abs(value) <= _LARGEST for value in (*self.image_mean, *self.image_std, self.rescale_factor)):
            raise ValueError(f"image_mean, image_std or rescale_factor is not finite or beyond {_LARGEST:g}")
        if any(abs(value) < _SMALLEST for value in self.image_std):
            raise ValueError(f"image_std is 0 in a channel, or below {_SMALLEST:g}")

    def normalisation(self) -> Normalisation:
        """From values to numbers."""
        return Normalisation(self)

    def resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """To that size, bit for bit as transformers' PIL processors do."""
        return image.resize((width, height), Image.Resampling(self.resample))

    def to_square(self, image: Image.Image, side: int) -> Image.Image:
        """To a square, whatever its aspect ratio, where the model resizes.

        Raises:
            RequestError: it does not, and the image is no such square.
        """
        if self.do_resize:
            return self.resize(image, side, side)
        if image.size != (side, side):
            raise RequestError(
                f"image or frame is {image.width} x {image.height} pixels, and this model takes them as they are, of {side} x "
                f"{side}. Resize it."
            )
        return image


def read_constants(constants: Mapping[str, Any], kind: type[_T], family: str) -> _T:
    """`manifest.processor` as the constants of a family.

    Raises:
        BundleError: a key is missing, unknown or has an unusable value.
    """
    try:
        return msgspec.convert(dict(constants), kind)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"the manifest's processor constants are not {family}'s: {error}. Export the bundle again."
        ) from error


class Normalisation:
    """`(value * rescale_factor - mean) / std` of 8-bit channels, bit for bit as transformers' image processors compute it.

    Args:
        constants: what is done, and with which numbers.
    """

    def __init__(self, constants: PixelConstants) -> None:
        # A channel has 256 values, so a table holds every result. float64 before float32 as transformers has it.
        factor = constants.rescale_factor if constants.do_rescale else 1
        levels: np.ndarray = np.repeat((np.arange(256) * factor).astype(np.float32)[:, None], 3, axis=1)
        if constants.do_normalize:
            levels = (levels - np.array(constants.image_mean, np.float32)) / np.array(constants.image_std, np.float32)
        self._tables = levels.T.copy()

    def into(self, patches: np.ndarray, pixels: np.ndarray, axis: int) -> None:
        """Writes normalised `pixels` into `patches` of the same shape; channels lie on `axis`."""
        for channel, table in enumerate(self._tables):
            where = (slice(None),) * axis + (channel,)
            patches[where] = table[pixels[where]]

    def square_patches(self, pictures: np.ndarray, grid: int, size: int) -> np.ndarray:
        """Cuts square pictures row by row.

        Args:
            pictures: `[pictures, height, width, 3]` uint8; pixels behind `grid * size` are not seen.
            grid: patches along a side.
            size: of a patch in pixels.

        Returns:
            `[pictures, grid ** 2, 3 * size ** 2]` float32, in the order channel, row, column.
        """
        blocks = pictures[:, : grid * size, : grid * size].reshape(-1, grid, size, grid, size, 3).transpose(0, 1, 3, 5, 2, 4)
        patches = np.empty(blocks.shape, np.float32)
        self.into(patches, blocks, axis=3)
        return patches.reshape(len(pictures), grid**2, -1)

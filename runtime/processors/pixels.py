"""From 8-bit pixels to the normalised patches that vision towers take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.engines import RequestError
from foveate.engines.format.processors.pixels import PixelConstants, patch_values


def resize(image: Image.Image, width: int, height: int, constants: PixelConstants) -> Image.Image:
    """To that size, bit for bit as transformers' PIL processors do."""
    return image.resize((width, height), Image.Resampling(constants.resample))


def to_square(image: Image.Image, side: int, constants: PixelConstants) -> Image.Image:
    """To a square, whatever its aspect ratio, where the model resizes.

    Raises:
        RequestError: it does not, and the image is no such square.
    """
    if constants.do_resize:
        return resize(image, side, side, constants)
    if image.size != (side, side):
        raise RequestError(
            f"image or frame is {image.width} x {image.height} pixels, and this model takes them as they are, of {side} x "
            f"{side}. Resize it."
        )
    return image


def cut(pictures: Sequence[Image.Image], side: int) -> np.ndarray:
    """`[pictures, rows, columns, 3 * side ** 2]` uint8: the pixels of the squares of that side that tile RGB pictures."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    count, height, width, _ = pixels.shape
    blocks = pixels.reshape(count, height // side, side, width // side, side, 3).swapaxes(2, 3)
    return blocks.reshape(count, height // side, width // side, -1)


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
        return patches.reshape(len(pictures), grid**2, patch_values(size))

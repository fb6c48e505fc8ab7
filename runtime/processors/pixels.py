"""From 8-bit pixels to the normalised patches that vision towers take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Normalisation:
    """`(value * rescale_factor - mean) / std` of 8-bit channels, bit for bit as transformers' image processors compute it.

    Args:
        mean, std: of the three channels.
        rescale_factor: of all of them.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], rescale_factor: float) -> None:
        # A channel has 256 values, so a table holds every result. float64 before float32 as transformers has it.
        levels = (np.arange(256) * rescale_factor).astype(np.float32)
        self._tables = ((levels[:, None] - np.array(mean, np.float32)) / np.array(std, np.float32)).T.copy()

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

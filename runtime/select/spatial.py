"""Selectors that look only at where a token lies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from foveate.engines import RequestError
from foveate.engines.errors import OptionError
from foveate.runtime.select.base import Relevance, Selector


@dataclass(frozen=True)
class Random(Selector):
    """A uniform subset, drawn anew for every question.

    Attributes:
        seed: 0 or above; the same seed and count give the same subset for the same request (`Relevance.seed`).

    Raises:
        OptionError: a seed that is no whole number of at least 0.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise OptionError(f"the seed of selector 'random' is {self.seed!r}, expected a whole number of at least 0. Use 0.")

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, relevance.seed])
        return np.sort(generator.choice(len(relevance), count, replace=False)).astype(np.int64)


@dataclass(frozen=True)
class Pooling(Selector):
    """Average pooling over rectangles of each frame: one token stands for its whole rectangle.

    Each frame gets regions in proportion to its cells (largest remainder, the earlier frame first). It is cut into bands of
    rows, and each band into cells, as square as the numbers allow. The token nearest to the centre of a region stays, with its
    position, and `embeds` gives it the mean of the region. A frame whose share is 0 gives no token.

    Raises:
        RequestError: on a call, grids that do not cover the visual tokens.
    """

    name: ClassVar[str] = "pooling"
    needs_all: ClassVar[bool] = True

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        return np.concatenate(
            [frame.first + frame.regions().centres(frame.columns) for frame in split_frames(relevance, count, self.name)]
        )

    def embeds(self, relevance: Relevance, keep_indices: np.ndarray) -> np.ndarray:
        frames = split_frames(relevance, len(keep_indices), self.name)
        pooled = relevance.visual_embeds.copy()
        pooled[keep_indices] = np.concatenate([frame.regions().means(frame.of(relevance.visual_embeds)) for frame in frames])
        return pooled


@dataclass(frozen=True, eq=False)
class _Regions:
    """Rectangles that tile a frame, each `[count]` int64, the end exclusive; band by band, each from left to right."""

    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def centres(self, columns: int) -> np.ndarray:
        """`[count]` int64, ascending: the token nearest to the centre, counted over the flattened frame."""
        return np.asarray((self.top + self.bottom - 1) // 2 * columns + (self.left + self.right - 1) // 2)

    def means(self, frame: np.ndarray) -> np.ndarray:
        """`[count, hidden_size]` float64: the mean of each region of `frame [rows, columns, hidden_size]`."""
        tops, band = np.unique(self.top, return_inverse=True)
        columns = np.add.reduceat(frame, tops, axis=0, dtype=np.float64).reshape(-1, frame.shape[2])
        sums = np.add.reduceat(columns, band * frame.shape[1] + self.left, axis=0)
        return np.asarray(sums / ((self.bottom - self.top) * (self.right - self.left))[:, None])


@dataclass(frozen=True)
class Frame:
    """A frame, the visual token that it starts with, and its share of the tokens that stay."""

    first: int
    rows: int
    columns: int
    share: int

    @property
    def tokens(self) -> slice:
        """Its visual tokens."""
        return slice(self.first, self.first + self.rows * self.columns)

    def of(self, visual_embeds: np.ndarray) -> np.ndarray:
        """`[rows, columns, hidden_size]`: the frame's visual tokens."""
        return visual_embeds[self.tokens].reshape(self.rows, self.columns, -1)

    def regions(self) -> _Regions:
        """Bands of rows whose cells are about square, and whose numbers of cells differ by at most one."""
        fewest, most = math.ceil(self.share / self.columns), min(self.rows, self.share)
        bands = min(max(round(math.sqrt(self.rows * self.share / self.columns)), fewest), most)
        region = np.arange(self.share)
        band = ((region + 1) * bands - 1) // self.share
        first = band * self.share // bands
        cells = (band + 1) * self.share // bands - first
        return _Regions(
            band * self.rows // bands,
            (band + 1) * self.rows // bands,
            (region - first) * self.columns // cells,
            (region - first + 1) * self.columns // cells,
        )


def check_grids(relevance: Relevance, selector: str) -> None:
    """Raises RequestError unless the cells of the grids are the visual tokens."""
    cells = sum(math.prod(grid) for grid in relevance.grids)
    if cells != len(relevance):
        raise RequestError(
            f"selector '{selector}' got grids of {cells} cells for {len(relevance)} visual tokens, and looks at whole frames. "
            "Leave out redundancy, use another selector, or set Relevance.grids to frames, rows and columns of each image.",
            options=("redundancy", "select"),
        )


def split_frames(relevance: Relevance, count: int, selector: str) -> Iterator[Frame]:
    """The frames of all grids that keep a token, with their shares of `count`: in proportion to their cells, largest remainder
    first, the earlier frame among equals.

    Raises:
        RequestError: grids that do not cover the visual tokens.
    """
    check_grids(relevance, selector)
    sizes = np.array([grid[1:] for grid in relevance.grids for _ in range(grid[0])], np.int64)
    cells = sizes.prod(axis=1)
    shares, remainders = np.divmod(count * cells, len(relevance))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    for first, (rows, columns), share in zip(np.cumsum(cells) - cells, sizes, shares, strict=True):
        if share:
            yield Frame(int(first), int(rows), int(columns), int(share))

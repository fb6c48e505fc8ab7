"""Which visual tokens lie beside each other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import NEIGHBOURS, Grid, find_neighbours

SIDE = st.integers(1, 6)
GRIDS = st.lists(st.tuples(st.integers(1, 3), SIDE, SIDE), max_size=4)


@given(GRIDS)
def test_neighbours_are_those_of_the_frame(grids: list[Grid]) -> None:
    places = [
        (image, frame, row, column)
        for image, (frames, rows, columns) in enumerate(grids)
        for frame in range(frames)
        for row in range(rows)
        for column in range(columns)
    ]
    number = {place: index for index, place in enumerate(places)}
    expected = [
        [number.get((image, frame, row + down, column + right), len(places)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        for image, frame, row, column in places
    ]
    found = find_neighbours(grids)
    assert (found.dtype, found.shape) == (np.int64, (len(places), NEIGHBOURS))
    assert found.tolist() == expected


def test_a_small_grid() -> None:
    assert find_neighbours([(1, 2, 2)]).tolist() == [
        [4, 4, 4, 4, 0, 1, 4, 2, 3],
        [4, 4, 4, 0, 1, 4, 2, 3, 4],
        [4, 0, 1, 4, 2, 3, 4, 4, 4],
        [0, 1, 4, 2, 3, 4, 4, 4, 4],
    ]

"""Where visual tokens lie on the canvas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.runtime.canvas import canvas_feeds
from foveate.runtime.select import Grid

SIDE = st.integers(1, 7)
GRIDS = st.lists(st.tuples(st.integers(1, 3), SIDE, SIDE), min_size=1, max_size=4)


@given(GRIDS)
def test_every_token_has_the_cell_of_its_row_and_column(grids: list[Grid]) -> None:
    feeds = canvas_feeds(grids)
    mask, cells = feeds["canvas_mask"], feeds["visual_cells"]
    assert (mask.dtype, cells.dtype) == (np.float32, np.int64)
    pages = [(height, width) for frames, height, width in grids for _ in range(frames)]
    assert mask.shape == (len(pages), max(height for height, _ in pages), max(width for _, width in pages))
    _, rows, columns = mask.shape
    expected = [
        (page * rows + row) * columns + column
        for page, (height, width) in enumerate(pages)
        for row in range(height)
        for column in range(width)
    ]
    assert cells.tolist() == expected
    assert np.flatnonzero(mask).tolist() == expected
    assert set(np.unique(mask)) <= {0, 1}


@pytest.mark.parametrize("grid", [(1, 3, 5), (2, 3, 5)])
def test_one_image_or_video_fills_its_canvas(grid: Grid) -> None:
    feeds = canvas_feeds([grid])
    assert feeds["canvas_mask"].shape == grid
    assert feeds["canvas_mask"].all()
    assert feeds["visual_cells"].tolist() == list(range(np.prod(grid)))

"""Charts with any number of lines, and labels that keep apart."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.charts import Curve, accuracy_chart, spread


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_labels_are_moved_apart_and_keep_their_order(values: list[float], gap: float) -> None:
    places = spread(values, gap)
    order = np.argsort(values, kind="stable")
    assert (np.diff(places[order]) >= gap - 1e-9).all()
    assert places.mean() == pytest.approx(np.mean(values))


def test_labels_that_do_not_touch_stay() -> None:
    assert spread([0.9, 0.1, 0.5], 0.2).tolist() == pytest.approx([0.9, 0.1, 0.5])
    assert spread([0.5, 0.5, 0.1], 0.2).tolist() == pytest.approx([0.4, 0.6, 0.1])


@pytest.mark.parametrize("count", [1, 14])
def test_a_chart_of_any_number_of_lines(count: int) -> None:
    keeps = (1.0, 0.95, 0.9, 0.5, 0.01)
    curves = [Curve(f"selector {index}", keeps, [1 - index / 20] * 5, [0.0] * 5, [1.0] * 5) for index in range(count)]
    picture = Image.open(io.BytesIO(accuracy_chart(curves, 1.0, {keep: f"{keep:.0%}" for keep in keeps})))
    colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7]}
    assert len(colours) > 20

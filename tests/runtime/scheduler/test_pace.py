"""Pieces of prompts take about as long as a step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foveate.runtime.scheduler.pace import LEAST_TOKENS, Pace


def test_before_anything_was_seen_a_piece_is_small() -> None:
    assert Pace(256).tokens == 32
    assert Pace(8).tokens == 8


def test_a_piece_takes_as_long_as_a_step() -> None:
    pace = Pace(256)
    pace.stepped(0.050)
    pace.read(100, 0.1)
    assert pace.tokens == 50
    for _ in range(20):
        pace.stepped(1.0)
    assert pace.tokens == 256
    for _ in range(40):
        pace.read(10, 10.0)
    assert pace.tokens == LEAST_TOKENS


@given(st.lists(st.tuples(st.floats(1e-4, 2), st.integers(1, 4096), st.floats(1e-4, 60)), max_size=20), st.integers(1, 5000))
def test_never_more_than_the_most(seen: list[tuple[float, int, float]], most: int) -> None:
    pace = Pace(most)
    for step, tokens, seconds in seen:
        pace.stepped(step)
        pace.read(tokens, seconds)
        assert 1 <= pace.tokens <= most

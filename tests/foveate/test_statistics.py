"""Intervals of shares, of what is retained and of differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foveate.evaluate import (
    Estimate,
    difference_points,
    retained,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(right: int, total: int, low: float, high: float) -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I."""
    estimate = wilson(right, total)
    assert (estimate.value, round(estimate.low, 4), round(estimate.high, 4)) == (right / total, low, high)


@example((108, 108))
@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_intervals_hold_the_share(counts: tuple[int, int]) -> None:
    estimate = wilson(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_same_answers_retain_exactly_everything_and_do_not_differ(right: list[bool]) -> None:
    answers = np.array(right)
    assert retained(answers, answers) == (Estimate(1.0, 1.0, 1.0) if any(right) else None)
    assert difference_points(answers, answers) == Estimate(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """1,000 samples: 900 right in both, 60 only before, 20 only after."""
    before = np.repeat([True, True, False, False], [900, 60, 20, 20])
    after = np.repeat([True, False, True, False], [900, 60, 20, 20])
    return before, after


def test_the_sign_and_the_width_of_a_paired_difference(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    worse, better = difference_points(*pairs), difference_points(*reversed(pairs))
    half = 1.96 * 100 * np.sqrt(80 - 40**2 / 1000) / 1000  # of the normal approximation, as for McNemar's test
    assert worse.value == pytest.approx(-4)
    assert (worse.low, worse.high) == pytest.approx((-4 - half, -4 + half), abs=0.15)
    assert worse.high < 0 < better.low
    assert better.value == pytest.approx(4)


def test_retained_intervals_are_those_of_resampled_samples(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = pairs
    drawn = np.random.default_rng(5).integers(len(before), size=(4000, len(before)))
    expected = np.percentile(after[drawn].sum(1) / before[drawn].sum(1), (2.5, 97.5))
    estimate = retained(before, after)
    assert estimate is not None
    assert estimate.value == 920 / 960
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.0015)


def test_resamples_without_a_right_answer_do_not_count() -> None:
    before = np.array([True, False, False, False])
    estimate = retained(before, np.array([True, True, False, False]))
    assert estimate is not None
    assert estimate.value == 2
    assert np.isfinite([estimate.low, estimate.high]).all()

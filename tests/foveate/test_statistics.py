"""Intervals of shares, of what is retained and of differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foveate.evaluate import difference_points, retained, stay, wilson


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


def pairs_of(both: int, only_first: int, only_other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two series of answers with these counts."""
    counts = [both, only_first, only_other, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


counts = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda table: sum(table) > 0)


@pytest.mark.parametrize(
    ("table", "ratio", "difference"),
    [
        ((59, 6, 16, 80), (0.8667, 0.7579, 0.9910), (-0.0621, -0.1186, -0.0046)),
        ((1, 1, 7, 12), (0.25, 0.068, 0.923), (-0.2857, -0.507, -0.026)),
    ],
    ids=["Cavo et al. 2012", "Bentur et al. 2009"],
)
def test_intervals_of_pairs_are_the_published_ones(
    table: tuple[int, int, int, int], ratio: tuple[float, ...], difference: tuple[float, ...]
) -> None:
    """Fagerland, Lydersen & Laake, "Statistical analysis of contingency tables" (2017), chapter 8."""
    first, other = pairs_of(*table)
    found, points = retained(other, first), difference_points(other, first)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(ratio, abs=0.0005)
    assert (points.value / 100, points.low / 100, points.high / 100) == pytest.approx(difference, abs=0.0005)


def test_what_stays_does_not_count_what_becomes_right() -> None:
    before, after = pairs_of(90, 10, 10, 0)
    assert stay(before, after) == wilson(90, 100)
    net = retained(before, after)
    assert net is not None
    assert net.value == 1.0


@pytest.mark.parametrize(("questions", "low"), [(12, 0.853), (1000, 0.998)])
def test_the_same_right_answers_leave_room_for_chance(questions: int, low: float) -> None:
    answers = np.ones(questions, bool)
    assert stay(answers, answers) == wilson(questions, questions)
    ratio, points = retained(answers, answers), difference_points(answers, answers)
    assert ratio is not None
    assert (ratio.value, round(ratio.low, 3), ratio.high) == (1.0, low, pytest.approx(1 / ratio.low))
    assert points.low < points.value == 0 < points.high == -points.low


@given(counts)
def test_intervals_hold_their_figure(table: tuple[int, int, int, int]) -> None:
    first, other = pairs_of(*table)
    for estimate in (stay(first, other), retained(first, other), difference_points(first, other)):
        assert estimate is None or estimate.low <= estimate.value + 1e-12 <= estimate.high + 2e-12
    assert (stay(first, other) is None) == (retained(first, other) is None) == (not first.any())


@given(counts)
def test_a_difference_turns_round_with_its_order(table: tuple[int, int, int, int]) -> None:
    forth, back = difference_points(*pairs_of(*table)), difference_points(*reversed(pairs_of(*table)))
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_intervals_are_about_those_of_resampled_samples() -> None:
    """With 1,000 samples, far from the edges; nearly all answers are the same, so pairs matter."""
    before, after = pairs_of(900, 60, 20, 20)
    drawn = np.random.default_rng(5).integers(len(before), size=(4000, len(before)))
    ratios = np.percentile(after[drawn].sum(1) / before[drawn].sum(1), (2.5, 97.5))
    points = np.percentile(100 * (after[drawn].mean(1) - before[drawn].mean(1)), (2.5, 97.5))
    estimate, difference = retained(before, after), difference_points(before, after)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx(tuple(ratios), abs=0.0015)
    assert (difference.low, difference.high) == pytest.approx(tuple(points), abs=0.15)

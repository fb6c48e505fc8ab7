"""The floor under what a budget may cost, by the retention curve of a bundle."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import RequestError, RetentionPoint, ScorerEntry
from foveate.runtime import Budget, Relevance, Selection, open_selector
from foveate.runtime.retention import check_floor
from foveate.runtime.select import keep_everything, select

CURVE = {0.125: 0.8, 0.25: 0.9, 0.5: 1.0}

curves = st.dictionaries(st.floats(0.01, 0.99), st.floats(0, 1), min_size=1, max_size=6)
floors = st.floats(0.01, 1)


def scorer(curve: dict[float, float], kind: str = "attention", selector: str = "attention") -> ScorerEntry:
    points = [RetentionPoint(keep, 1.0, 1.0, 1.0, 100, retained, retained, retained) for keep, retained in curve.items()]
    return ScorerEntry(kind, default_selector=selector, retention=tuple(points))


def keeping(kept: int, total: int, selector: str = "attention") -> Selection:
    return Selection(np.arange(kept), total, selector)


def passes(floor: float, kept: int, total: int, curve: dict[float, float]) -> bool:
    try:
        check_floor(floor, keeping(kept, total), scorer(curve))
    except RequestError:
        return False
    return True


@pytest.mark.parametrize(
    ("kept", "floor"),
    [(25, 0.9), (50, 1.0), (30, 0.92), (19, 0.85), (75, 1.0)],
    ids=["low", "high", "line", "steep", "beyond"],
)
def test_the_curve_is_a_line_between_its_points(kept: int, floor: float) -> None:
    assert passes(floor, kept, 100, CURVE)
    assert floor == 1.0 or not passes(floor + 1e-6, kept, 100, CURVE)


def test_a_refusal_says_what_the_curve_says() -> None:
    with pytest.raises(RequestError) as refusal:
        check_floor(0.95, keeping(25, 100), scorer(CURVE))
    assert str(refusal.value) == (
        "keeping 25 of 100 visual tokens retains at least about 90.00 % of the right answers, and min_retained is 0.95. "
        "The bundle's curve has at least 80.0 % at keep 0.125, 90.0 % at keep 0.25, 100.0 % at keep 0.5, 100.0 % at keep 1. "
        "Keep at least 50 tokens, or lower min_retained."
    )


def test_less_than_what_was_measured_is_refused_whatever_the_floor() -> None:
    with pytest.raises(
        RequestError, match=r"keeping 12 of 100 visual tokens is below what was measured.*Keep at least 13 tokens"
    ):
        check_floor(0.01, keeping(12, 100), scorer(CURVE))


@given(curves, st.integers(1, 2000))
def test_a_measured_ratio_retains_what_was_measured_there(curve: dict[float, float], total: int) -> None:
    for keep, retained in curve.items():
        counts = [Budget(ratio=other).count(np.empty(total)) for other in curve]
        kept = Budget(ratio=keep).count(np.empty(total))
        if counts.count(kept) == 1 and kept < total and retained > 0:
            assert passes(retained, kept, total, curve)
            assert retained > 0.99 or not passes(retained + 0.001, kept, total, curve)


@given(curves, floors, st.integers(2, 2000), st.data())
def test_the_remedy_helps(curve: dict[float, float], floor: float, total: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, total - 1))
    try:
        check_floor(floor, keeping(kept, total), scorer(curve))
    except RequestError as refusal:
        remedy = re.search(r"Keep at least (\d+) tokens", str(refusal))
        assert remedy is not None
        assert int(remedy[1]) > kept
        assert passes(floor, int(remedy[1]), total, curve)


@pytest.mark.parametrize("retained", [0.95 - 1e-12, 0.931 / 0.98])
def test_the_last_digits_do_not_decide(retained: float) -> None:
    assert passes(0.95, 25, 100, {0.25: retained})


def test_a_floor_is_held_against_the_lower_end_of_what_stays() -> None:
    """1.007 of the right answers is a net ratio; 0.96 of them stay, and 0.94 for certain."""
    entry = ScorerEntry(retention=(RetentionPoint(0.25, 1.007, 0.98, 1.03, 400, 0.96, 0.94, 0.975),))
    check_floor(0.94, keeping(25, 100), entry)
    with pytest.raises(RequestError, match=r"at least about 94\.00 %.*Keep at least 100 tokens"):
        check_floor(0.95, keeping(25, 100), entry)


def test_a_curve_of_few_questions_holds_no_floor() -> None:
    """Twelve of twelve answers stayed: their interval reaches down to 0.76."""
    for questions, passes in ((12, False), (99, False), (100, True)):
        entry = ScorerEntry(retention=(RetentionPoint(0.25, 1.0, 1.0, 1.0, questions, 1.0, 1.0, 1.0),))
        if passes:
            check_floor(1.0, keeping(25, 100), entry)
        else:
            with pytest.raises(RequestError, match=f"measured with {questions} questions, expected at least 100"):
                check_floor(0.5, keeping(25, 100), entry)


def test_keep_1_retains_all_even_where_a_measurement_says_otherwise() -> None:
    assert passes(0.995, 99, 100, {0.5: 0.98, 1.0: 0.9})


def test_no_floor_and_nothing_dropped_need_no_curve() -> None:
    check_floor(None, keeping(1, 100, "random"), ScorerEntry())
    check_floor(1.0, keep_everything(100, "no budget was set"), ScorerEntry())
    check_floor(1.0, keep_everything(0, "the request has no image"), ScorerEntry())
    check_floor(1.0, keeping(100, 100, "random"), ScorerEntry())


def test_a_bundle_without_a_curve_is_refused() -> None:
    with pytest.raises(RequestError, match=r"no retention curve.*--calibrate"):
        check_floor(0.5, keeping(50, 100), ScorerEntry())


@pytest.mark.parametrize(
    ("selector", "measured"),
    [("random", "attention"), ("attention", "foveated"), ("learned", "attention"), ("learned-dpp", "foveated")],
)
def test_the_curve_says_nothing_about_another_selector(selector: str, measured: str) -> None:
    with pytest.raises(RequestError, match=f"'{measured}', not '{selector}'"):
        check_floor(0.5, keeping(50, 100, selector), scorer(CURVE, selector=measured))


def test_the_curve_of_a_trained_scorer_is_of_its_selector() -> None:
    check_floor(0.9, keeping(25, 100, "foveated"), scorer(CURVE, "trained", "foveated"))
    with pytest.raises(RequestError, match="measured with selector 'foveated', not 'learned'"):
        check_floor(0.9, keeping(25, 100, "learned"), scorer(CURVE, "trained", "foveated"))


def test_a_mass_counts_by_the_tokens_that_it_kept() -> None:
    scores = np.array([0.6, 0.3, *[0.0125] * 8], np.float32)
    relevance = Relevance(np.zeros((10, 4), np.float32), attention=scores)
    for mass, kept in ((0.85, 2), (0.92, 4)):
        selection = select(relevance, Budget(mass=mass), open_selector("attention"))
        assert len(selection.keep_indices) == kept
        if kept == 2:
            with pytest.raises(RequestError, match="keeping 2 of 10"):
                check_floor(0.95, selection, scorer(CURVE))
        else:
            check_floor(0.95, selection, scorer(CURVE))

"""The floor under what a budget may cost, by the retention curve of a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.engines import RequestError, RetentionPoint, ScorerEntry
from foveate.runtime import Answer, Budget, Pipeline, Relevance, Request, Selection, load, open_selector
from foveate.runtime.retention import check_floor
from foveate.runtime.select import keep_everything, select

CURVE = {0.125: 0.8, 0.25: 0.9, 0.5: 1.0}

curves = st.dictionaries(st.floats(0.01, 0.99), st.floats(0, 1), min_size=1, max_size=6)
floors = st.floats(0.01, 1)

PARTS = {0.5: {0.5: 0.97, 0.25: 0.87}, 0.25: {0.25: 0.85, 0.125: 0.7}}


def scorer(curve: dict[float, float], kind: str = "attention", selector: str = "attention") -> ScorerEntry:
    points = [RetentionPoint(keep, 1.0, 1.0, 1.0, 100, retained, retained, retained) for keep, retained in curve.items()]
    return ScorerEntry(kind, default_selector=selector, retention=tuple(points))


def parted(curves: dict[float, dict[float, float]], questions: int = 100) -> ScorerEntry:
    """`CURVE` behind the whole tower, and these behind a part of it, by `encode`."""
    points = [
        RetentionPoint(keep, 1.0, 1.0, 1.0, questions, retained, retained, retained, encode)
        for encode, curve in curves.items()
        for keep, retained in curve.items()
    ]
    return msgspec.structs.replace(scorer(CURVE), retention=(*scorer(CURVE).retention, *points))


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


# Behind a part of the tower


@pytest.mark.parametrize(
    ("encoded", "kept", "retained"),
    [
        (50, 50, 0.97),  # measured
        (50, 25, 0.87),
        (50, 30, 0.89),  # a line between two keep ratios
        (60, 60, 0.97),  # what was measured with less of the tower, and with fewer tokens
        (49, 40, 0.85),
        (25, 25, 0.85),
        (25, 19, 0.775),
        (None, 25, 0.9),  # the whole tower
    ],
)
def test_a_part_has_the_curve_of_the_largest_share_that_is_not_above_it(
    encoded: int | None, kept: int, retained: float
) -> None:
    check_floor(retained, keeping(kept, 100), parted(PARTS), encoded)
    with pytest.raises(RequestError, match=f"at least about {100 * retained:.2f} %"):
        check_floor(retained + 1e-6, keeping(kept, 100), parted(PARTS), encoded)


def test_all_that_a_part_has_is_not_all() -> None:
    """Everything that the tower computed stays, and the rest of the picture is lost all the same."""
    with pytest.raises(RequestError) as refusal:
        check_floor(0.98, keeping(50, 100), parted(PARTS), encoded=50)
    assert str(refusal.value) == (
        "keeping 50 of 100 visual tokens retains at least about 97.00 % of the right answers, and min_retained is 0.98. "
        "The bundle's curve with encode 0.5 has at least 87.0 % at keep 0.25, 97.0 % at keep 0.5. "
        "Raise encode, or lower min_retained."
    )


@pytest.mark.parametrize(
    ("encoded", "kept", "part"),
    [
        (24, 24, r"the tower computed 24 of 100 .* encode 0.25, .*Set encode to 0.25 or more"),
        (50, 24, r"keeping 24 of 100 visual tokens is below what was measured.*Keep at least 25 tokens"),
        (30, 12, "below what was measured.*Keep at least 13 tokens"),
    ],
)
def test_less_of_the_tower_than_was_measured_is_refused(encoded: int, kept: int, part: str) -> None:
    with pytest.raises(RequestError, match=part):
        check_floor(0.01, keeping(kept, 100), parted(PARTS), encoded)


def test_a_curve_of_the_whole_tower_says_nothing_about_a_part() -> None:
    with pytest.raises(RequestError, match=r"whole tower alone.*--calibrate.*leave out encode") as refusal:
        check_floor(0.5, keeping(50, 100), scorer(CURVE), encoded=50)
    assert refusal.value.options == ("encode", "min_retained")
    with pytest.raises(RequestError, match="this bundle has no retention curve"):
        check_floor(0.5, keeping(50, 100), ScorerEntry(), encoded=50)


def test_few_large_pictures_hold_no_floor_for_parts() -> None:
    few = parted(PARTS, questions=99)
    check_floor(0.9, keeping(25, 100), few)
    with pytest.raises(RequestError, match=r"curve with encode 0\.5 was measured with 99 questions"):
        check_floor(0.5, keeping(25, 100), few, encoded=50)


@given(st.dictionaries(st.floats(0.01, 0.99), curves, min_size=1, max_size=3), floors, st.integers(2, 2000), st.data())
def test_the_remedy_for_a_part_helps(
    curves: dict[float, dict[float, float]], floor: float, total: int, data: st.DataObject
) -> None:
    below = {encode: {min(keep, encode): share for keep, share in curve.items()} for encode, curve in curves.items()}
    encoded = data.draw(st.integers(1, total - 1))
    kept = data.draw(st.integers(1, encoded))
    try:
        check_floor(floor, keeping(kept, total), parted(below), encoded)
    except RequestError as refusal:
        remedy = re.search(r"Keep at least (\d+) tokens|Raise encode|Set encode to", str(refusal))
        assert remedy is not None
        if remedy[1] is not None:
            assert kept < int(remedy[1]) <= encoded
            check_floor(floor, keeping(int(remedy[1]), total), parted(below), encoded)


@pytest.fixture(scope="module")
def pipe(reference_bundle: Path) -> Iterator[Pipeline]:
    """Its curves are `CURVE` and `PARTS`, measured with what it chooses by."""
    with load(reference_bundle) as pipe:
        measured = msgspec.structs.replace(pipe.manifest.scorer, retention=parted(PARTS).retention)
        pipe.manifest = msgspec.structs.replace(pipe.manifest, scorer=measured)
        yield pipe


def ask(pipe: Pipeline, side: int, **options: Any) -> Answer:
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    return pipe.generate(Request.ask("What colour is the circle?", picture, max_new_tokens=1, **options))


def test_a_floor_goes_with_a_part_of_the_tower(pipe: Pipeline) -> None:
    answer = ask(pipe, 560, encode=0.5, min_retained=0.96)
    assert answer.encoding is not None
    assert (answer.encoding.encoded_tokens, answer.encoding.reason) == (200, "")
    for options in ({"encode": 0.25}, {"encode": 0.5, "keep": 0.25}, {"encode": "auto", "keep": 0.25}):
        with pytest.raises(RequestError, match=r"keeping 100 of 400 .* at least about 8[57]\.00 %"):
            ask(pipe, 560, min_retained=0.9, **options)


def test_what_the_tower_saw_whole_has_the_whole_towers_curve(pipe: Pipeline) -> None:
    """64 visual tokens are too few for a glance."""
    answer = ask(pipe, 224, encode=0.25, keep=0.25, min_retained=0.9)
    assert answer.encoding is not None
    assert answer.encoding.reason
    with pytest.raises(RequestError, match=r"curve has at least 80\.0 % at keep 0\.125"):
        ask(pipe, 224, encode=0.25, keep=0.25, min_retained=0.95)

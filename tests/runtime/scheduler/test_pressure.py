"""Under load flexible requests keep fewer visual tokens, and never fewer than the curve allows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import LatencyPoint, OptionError, RetentionPoint, ScorerEntry
from foveate.runtime import Request
from foveate.runtime.latency import LatencyModel, Unmeasured
from foveate.runtime.scheduler.pressure import EVERYTHING, Level, Pressure, levels


def point(keep: float, low: float, encode: float | None = None, questions: int = 500) -> RetentionPoint:
    known: dict[str, Any] = {"retained": low + 0.01, "low": low, "high": low + 0.02}
    known |= {"stay": low + 0.01, "stay_low": low, "stay_high": low + 0.02}
    return RetentionPoint(keep=keep, questions=questions, encode=encode, **known)


CURVE = (point(0.5, 0.99), point(0.25, 0.98), point(0.1, 0.8), point(0.25, 0.975, 0.25), point(0.25, 0.985, 0.5))
SCORER = ScorerEntry(kind="trained", default_selector="foveated", retention=CURVE)
MODEL = LatencyModel(
    SimpleNamespace(  # type: ignore[arg-type]
        vision=[LatencyPoint(100, 100.0), LatencyPoint(1000, 1000.0)],
        score=[LatencyPoint(100, 5.0), LatencyPoint(1000, 50.0)],
        prefill=[LatencyPoint(100, 20.0), LatencyPoint(1000, 200.0)],
    )
)
PREPARED: Any = SimpleNamespace(grids=((1, 20, 45),), num_visual_tokens=900, num_text_tokens=20)


def pressure(slo_ms: float = 3000, floor: float = 0.97) -> Pressure:
    return Pressure(slo_ms, SCORER, MODEL, floor)


def test_levels_are_those_above_the_floor() -> None:
    assert levels(SCORER, 0.97) == [
        EVERYTHING,
        Level(0.5, None, 0.99),
        Level(0.25, 0.5, 0.985),
        Level(0.25, None, 0.98),
        Level(0.25, 0.25, 0.975),
    ]
    assert levels(SCORER, 0.995) == [EVERYTHING]
    few = ScorerEntry(retention=(point(0.5, 0.99, questions=50),))
    assert levels(few, 0.5) == [EVERYTHING]


def test_alone_everything_stays() -> None:
    request, why, takes = pressure().shape(Request.ask("What?"), PREPARED, [0.0])
    assert request == Request.ask("What?")
    assert why == ""
    assert takes == pytest.approx(900 + 184, rel=0.01)


def test_the_more_wait_the_less_is_kept() -> None:
    kept = []
    for behind in (0, 2, 30):
        request, why, _ = pressure().shape(Request.ask("What?"), PREPARED, [0.0] * (1 + behind))
        kept.append((request.encode, request.budget.ratio))
        assert (why == "") == (request.encode is None and request.budget.ratio is None)
    assert kept == [(None, None), (0.5, 0.25), (0.25, 0.25)]
    assert pressure(2500).shape(Request.ask("What?"), PREPARED, [0.0, 0.0])[0].budget.ratio == 0.5
    assert "30 wait behind it" in why
    assert "within 3000 ms" in why


@given(
    st.lists(st.floats(0, 5000), min_size=1, max_size=40),
    st.floats(0.5, 1.0),
    st.sampled_from([None, 0.95, 0.98, 0.99]),
)
def test_never_below_the_floor(waited: list[float], slowdown: float, floor: float | None) -> None:
    planner = pressure()
    planner.learn(1000, 1000 / slowdown)
    shaped, _, _ = planner.shape(Request.ask("What?", min_retained=floor), PREPARED, waited)
    if shaped.budget.ratio is not None:
        found = next(p for p in CURVE if (p.keep, p.encode) == (shaped.budget.ratio, shaped.encode))
        assert found.low >= (floor or 0.97)
        assert shaped.min_retained == (floor or 0.97)


def test_what_can_not_begin_in_time_holds_nobody_up() -> None:
    planner = pressure()
    assert planner.allowed_ms([0.0, 10_000.0]) == planner.allowed_ms([0.0])
    assert planner.allowed_ms([10_000.0]) == 0


def test_a_slow_machine_is_noticed() -> None:
    planner = pressure()
    before = planner.shape(Request.ask("What?"), PREPARED, [0.0, 0.0])[0].budget.ratio
    for _ in range(20):
        planner.learn(1000, 4000)
    after = planner.shape(Request.ask("What?"), PREPARED, [0.0, 0.0])[0]
    assert before is None
    assert (after.encode, after.budget.ratio) == (0.25, 0.25)


def test_a_text_alone_has_nothing_to_give_up() -> None:
    text: Any = SimpleNamespace(grids=(), num_visual_tokens=0, num_text_tokens=20)
    assert pressure().shape(Request.ask("What?"), text, [0.0] * 50)[0] == Request.ask("What?")


def test_what_it_needs() -> None:
    with pytest.raises(OptionError, match="has no latencies"):
        Pressure(1000, SCORER, Unmeasured(), 0.97)
    with pytest.raises(OptionError, match=r"no budget that retains 0\.999 of the right answers\. Measure some with"):
        Pressure(1000, SCORER, MODEL, 0.999)

"""What the tower computes, planned before it runs: against trying every number of visual tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import Environment, LatencyEntry, LatencyPoint, RequestError
from foveate.runtime.encoding.plan import TowerModel, TowerPlan, TowerSizes, plan_tower
from foveate.runtime.latency import LatencyModel


def line(points: dict[int, float]) -> tuple[LatencyPoint, ...]:
    return tuple(LatencyPoint(tokens, ms) for tokens, ms in points.items())


def model(vision: dict[int, float], score: float = 5.0) -> LatencyModel:
    """A millisecond a token of the prompt, and a scorer that takes as long for any number."""
    scores, prefill = {1: score, 1000: score}, {1: 1.0, 1000: 1000.0}
    return LatencyModel(LatencyEntry(Environment("a CPU", 2, "b", {}), line(vision), line(scores), line(prefill)))


TOWER = model({1: 10.0, 1000: 10_000.0})
"""Ten milliseconds a visual token."""
SIZES = TowerSizes((100,), (25,), text_tokens=20, spent_ms=50.0)
"""All: 50 + 1,000 + 120. All and one kept: 50 + 1,000 + 5 + 21. A glance and n: 50 + 250 + 5 + 10 n + 20 + n."""


@pytest.mark.parametrize(
    ("ttft_ms", "expected"),
    [
        (1170.0, TowerPlan(None, 100, 1170.0, "all tokens fit into 1170 ms")),
        (1169.0, TowerPlan(None, 94, 1169.0, "a glance and its part would keep no more within 1169 ms")),
        (1151.0, TowerPlan(None, 76, 1151.0, "a glance and its part would keep no more within 1151 ms")),
        (1140.0, TowerPlan(74, 74, 1139.0)),
        (600.0, TowerPlan(25, 25, 600.0)),
        (336.0, TowerPlan(1, 1, 336.0)),
    ],
)
def test_milliseconds_become_what_is_computed_and_kept(ttft_ms: float, expected: TowerPlan) -> None:
    found = plan_tower(ttft_ms, SIZES, TOWER)
    assert replace(found, predicted_ttft_ms=round(found.predicted_ttft_ms, 6)) == expected


def test_without_a_glance_there_is_only_the_whole_tower() -> None:
    sizes = replace(SIZES, glances=None)
    assert plan_tower(1140, sizes, TOWER) == TowerPlan(None, 65, pytest.approx(1140.0))
    with pytest.raises(
        RequestError, match=r"a single visual token, with all visual tokens computed, .* after about 1076 ms, 50 ms"
    ):
        plan_tower(1075, sizes, TOWER)
    assert plan_tower(1075, replace(sizes, needs_scores=False), TOWER).kept_tokens == 5


def test_too_little_time_says_what_the_least_is() -> None:
    with pytest.raises(RequestError, match=r"after a glance, .* after about 336 ms, 50 ms .* Raise it, or use smaller images"):
        plan_tower(335, SIZES, TOWER)


def test_a_prompt_without_images_has_nothing_to_plan() -> None:
    sizes = replace(SIZES, pictures=(), glances=())
    assert plan_tower(1, sizes, TOWER) == TowerPlan(None, 0, pytest.approx(70.0))
    assert plan_tower(70.5, sizes, TOWER).reason == "all tokens fit into 70.5 ms"


rising = st.dictionaries(st.integers(1, 300), st.floats(0, 1e3), min_size=1, max_size=4)


@given(rising, st.floats(0, 50), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.booleans(), st.floats(1, 2e3))
def test_no_way_keeps_more(vision: dict[int, float], score: float, pictures: list[int], glance: bool, ttft_ms: float) -> None:
    sizes = TowerSizes(tuple(pictures), tuple(-(-tokens // 9) for tokens in pictures) if glance else None, 20, 3.0)
    takes, total = TowerModel(sizes, model(vision, score)), sum(pictures)
    ways = {kept: [takes.pruned_ms(kept), *([takes.part_ms(kept)] if glance else [])] for kept in range(1, total)}
    ways[total] = [takes.whole_ms()]
    most = max((kept for kept, times in ways.items() if min(times) <= ttft_ms), default=None)
    if most is None:
        with pytest.raises(RequestError, match=f"after about {min(ways[1]):.0f} ms" if total > 1 else "after about"):
            plan_tower(ttft_ms, sizes, model(vision, score))
        return
    found = plan_tower(ttft_ms, sizes, model(vision, score))
    assert found.kept_tokens == most
    assert found.predicted_ttft_ms in ways[most]
    assert found.predicted_ttft_ms <= ttft_ms
    assert (found.encoded_tokens is None) == (most == total or takes.pruned_ms(most) <= ttft_ms)


def test_each_picture_is_a_run_of_its_own() -> None:
    """A quadratic tower takes less for two small pictures than for one of both."""
    quadratic = model({tokens: tokens**2 / 10 for tokens in (1, 5, 10, 25, 50, 100)})
    two = TowerSizes((50, 50), (10, 10), text_tokens=20)
    one = TowerSizes((100,), (20,), text_tokens=20)
    assert TowerModel(two, quadratic).whole_ms() == pytest.approx(2 * 250 + 120)
    assert TowerModel(one, quadratic).whole_ms() == pytest.approx(1000 + 120)
    assert TowerModel(two, quadratic).part_ms(10) == pytest.approx(2 * 10 + 5 + 2 * 2.5 + 30)

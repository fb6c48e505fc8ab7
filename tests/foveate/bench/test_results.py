"""Figures of a load test, from requests that are known."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.bench import BenchPlan, Load, Sent
from foveate.bench.drive import arrivals
from foveate.bench.results import Percentiles, summarise
from foveate.engines import OptionError


def sent(ttft_ms: float | None, gaps_ms: list[float], error: str = "", tokens: int = 4) -> Sent:
    end = (ttft_ms or 0) + sum(gaps_ms)
    return Sent(
        due_ms=0,
        lag_ms=0,
        picture=True,
        status=200,
        error=error,
        ttft_ms=ttft_ms,
        gaps_ms=gaps_ms,
        end_to_end_ms=end,
        chunks=4,
        output_tokens=tokens,
        by_usage=error == "",
    )


REQUESTS = [
    sent(100, [10, 10, 10]),
    sent(200, [10, 10, 40]),
    sent(300, [50, 50, 50]),
    sent(None, [], "HTTP 429"),
    sent(50, [1, 1, 1], "cut off"),
    sent(None, [], "HTTP 429"),
]


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).random(137)
    found = Percentiles.of(values)
    assert found is not None
    assert (found.mean, found.max) == (pytest.approx(values.mean()), values.max())
    for share, value in ((50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)):
        assert value == pytest.approx(np.percentile(values, share))
    assert Percentiles.of([]) is None


def test_only_whole_answers_have_times_and_tokens() -> None:
    figures = summarise(REQUESTS, 2.0)
    assert (figures.requests, figures.answered) == (6, 3)
    assert figures.errors == {"HTTP 429": 2, "cut off": 1}
    assert (figures.requests_per_second, figures.output_tokens_per_second) == (1.5, 6.0)
    assert figures.ttft_ms is not None
    assert (figures.ttft_ms.p50, figures.ttft_ms.max) == (200, 300)
    assert figures.end_to_end_ms is not None
    assert figures.end_to_end_ms.max == 450
    assert figures.gap_ratio is not None
    assert (figures.gap_ratio.p50, figures.gap_ratio.max) == (1, 4)
    assert (figures.good_share, figures.goodput_per_second, figures.tokens_by) == (None, None, "usage")


@pytest.mark.parametrize(
    ("ttft_slo_ms", "itl_slo_ms", "good"),
    [(250, None, 2), (None, 20, 2), (150, 20, 1), (99, None, 0), (1000, 1000, 3), (200, 10, 1)],
)
def test_goodput_counts_what_keeps_all_limits(ttft_slo_ms: float | None, itl_slo_ms: float | None, good: int) -> None:
    figures = summarise(REQUESTS, 2.0, ttft_slo_ms, itl_slo_ms)
    assert figures.good_share == good / 6
    assert figures.goodput_per_second == good / 2


def test_arrivals_are_a_poisson_process() -> None:
    plan = BenchPlan(rates=(50.0,), requests=4000, seed=3)
    due = arrivals(50.0, plan, 0)
    gaps = np.diff(due)
    assert (len(due), due[0]) == (4000, 0)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # an exponential distribution's
    assert due == arrivals(50.0, plan, 0)
    assert due != arrivals(50.0, plan, 1)


def test_arrivals_of_a_time_end_with_it() -> None:
    due = arrivals(100.0, BenchPlan(rates=(100.0,), seconds=2.0), 0)
    assert max(due) < 2
    assert len(due) == pytest.approx(200, rel=0.3)


def test_loads_are_ascending_and_once() -> None:
    plan = BenchPlan(rates=(4, 2, 4), clients=(8, 1, 8), keeps=(0.25, 1, 0.25))
    assert plan.loads == (Load("closed", 1), Load("closed", 8), Load("open", 2), Load("open", 4))
    assert plan.ratios == (1, 0.25)
    assert [str(load) for load in plan.loads] == ["1 client", "8 clients", "2 a second", "4 a second"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"clients": ()}, "rates"),
        ({"rates": (0.0,)}, "rates"),
        ({"clients": (0,)}, "clients"),
        ({"keeps": (1.5,)}, "keeps"),
        ({"requests": 0}, "requests"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"rounds": 0}, "rounds"),
        ({"warm_up": 0}, "warm_up"),
        ({"image_size": (0, 9)}, "image_size"),
        ({"text_only": 1.1}, "text_only"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"ttft_slo_ms": 0.0}, "ttft_slo_ms"),
        ({"itl_slo_ms": -1.0}, "itl_slo_ms"),
    ],
)
def test_what_nothing_can_be_measured_with(options: dict[str, object], name: str) -> None:
    with pytest.raises(OptionError) as caught:
        BenchPlan(**options)  # type: ignore[arg-type]
    assert name in caught.value.options

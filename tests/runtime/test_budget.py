"""Budgets: a number of tokens, or an error with a remedy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import RequestError
from foveate.runtime import Budget, Request

weights = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50).filter(any).map(lambda x: np.array(x, np.float32))


@pytest.mark.parametrize(
    "limits",
    [
        *({"ratio": value} for value in (0, -1, 2.0, math.nan, math.inf, -math.inf, "0.5", True)),
        *({"mass": value} for value in (0, -1, 2.0, math.nan, math.inf, 1.01)),
        *({"tokens": value} for value in (0, -1, 0.5, math.nan, True)),
        {"ratio": 0.5, "mass": 0.5},
        {"ratio": 0.5, "tokens": 5},
        {"tokens": 5, "mass": 0.5},
    ],
)
def test_an_unusable_budget_is_an_error(limits: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="the budget"):
        Budget(**limits)


def test_what_a_question_keeps() -> None:
    assert Request.ask("What?").budget == Budget()
    assert Request.ask("What?", keep=1).budget == Budget(ratio=1.0)
    assert Request.ask("What?", keep=np.float32(0.5)).budget == Budget(ratio=0.5)
    assert Request.ask("What?", keep_tokens=np.int64(256)).budget == Budget(tokens=256)
    assert Request.ask("What?", mass=0.9).budget == Budget(mass=0.9)
    with pytest.raises(RequestError, match="ratio and tokens"):
        Request.ask("What?", keep=0.5, keep_tokens=5)


def test_a_ratio_is_rounded_half_up() -> None:
    counts = {(0.5, 5): 3, (0.5, 4): 2, (0.1, 30): 3, (0.29, 100): 29, (0.001, 10): 1, (1.0, 7): 7, (0.999, 3): 3}
    assert {key: Budget(ratio=key[0]).count(np.zeros(key[1])) for key in counts} == counts


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10_000))
def test_a_ratio_keeps_between_one_and_all(ratio: float, total: int) -> None:
    count = Budget(ratio=ratio).count(np.zeros(total))
    assert 1 <= count <= total
    assert count == 1 or abs(count - ratio * total) <= 0.5


@given(weights, st.floats(0, 1, exclude_min=True))
def test_mass_keeps_the_fewest_tokens_that_reach_it(weights: np.ndarray, mass: float) -> None:
    count = Budget(mass=mass).count(weights)
    descending = np.sort(weights.astype(np.float64))[::-1]
    share = np.cumsum(descending) / np.cumsum(descending)[-1]
    assert 1 <= count <= len(weights)
    assert share[count - 1] >= mass * (1 - 1e-12)
    assert count == 1 or share[count - 2] < mass * (1 + 1e-12)


def test_why_everything_stays() -> None:
    assert Budget(ratio=0.5).keeps_all(0) == "the request has no image"
    assert Budget().keeps_all(9) == "no budget was set"
    assert Budget(ratio=1.0).keeps_all(9) == "the budget (ratio 1) covers all 9 visual tokens"
    assert Budget(tokens=10).keeps_all(9) == "the budget (10 tokens) covers all 9 visual tokens"
    assert Budget(tokens=8).keeps_all(9) is None
    assert Budget(mass=1.0).keeps_all(9) is None

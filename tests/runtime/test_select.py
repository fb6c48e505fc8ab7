"""Selection: ascending, unique, reproducible."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import RequestError
from foveate.runtime import Budget, Relevance, top_k
from foveate.runtime.select import keep_everything, select

few_values = st.lists(st.integers(0, 4), min_size=1, max_size=60)  # many ties
any_values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


def relevance(scores: list[float]) -> Relevance:
    return Relevance(np.array(scores, np.float32), np.zeros((len(scores), 2), np.float32))


@given(st.one_of(few_values, any_values), st.data())
def test_top_k_keeps_the_highest_in_order(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    kept = top_k(relevance(scores), count).tolist()
    best_first = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert kept == sorted(best_first[:count])


@given(few_values)
def test_all_tokens_are_the_identity(scores: list[float]) -> None:
    assert top_k(relevance(scores), len(scores)).tolist() == list(range(len(scores)))


def test_a_selection_reports_what_was_decided() -> None:
    selection = select(relevance([0.1, 0.4, 0.2, 0.3]), Budget(tokens=2), top_k, logits=False, note="a note")
    assert selection.to_dict() == {
        "keep_indices": [1, 3],
        "num_visual_tokens": 4,
        "policy": "top_k",
        "reason": "a note",
        "scores": pytest.approx([0.1, 0.4, 0.2, 0.3]),
    }
    assert keep_everything(2, "why").to_dict() == {
        "keep_indices": [0, 1],
        "num_visual_tokens": 2,
        "policy": "all",
        "reason": "why",
        "scores": None,
    }


def test_mass_sums_weights_or_the_softmax_of_logits() -> None:
    scores = [3.0, 2.0, 1.0, 0.0]
    assert len(select(relevance(scores), Budget(mass=0.8), top_k, logits=False).keep_indices) == 2
    assert len(select(relevance([s - 9 for s in scores]), Budget(mass=0.8), top_k, logits=True).keep_indices) == 2
    assert len(select(relevance([10 * s for s in scores]), Budget(mass=0.8), top_k, logits=True).keep_indices) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(RequestError, match="not finite"):
        select(relevance([0.5, bad]), Budget(tokens=1), top_k, logits=False)


@pytest.mark.parametrize(
    "policy",
    [
        lambda relevance, count: np.array([1, 0]),
        lambda relevance, count: np.array([0, 0]),
        lambda relevance, count: np.array([0, 1, 2]),
        lambda relevance, count: np.array([-1, 0]),
        lambda relevance, count: np.array([1, 4]),
        lambda relevance, count: np.array([0.0, 1.0]),
    ],
)
def test_a_policy_that_breaks_its_contract_is_an_error(policy: Callable[[Relevance, int], np.ndarray]) -> None:
    with pytest.raises(RequestError, match="did not give 2 ascending indices below 4"):
        select(relevance([0.1, 0.4, 0.2, 0.3]), Budget(tokens=2), policy, logits=False)

"""Selection: ascending, unique, reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import BackendError, RequestError
from foveate.runtime import Budget, Policy, Relevance, top_k
from foveate.runtime.select import Custom, Selector, keep_everything, open_selector, select
from foveate.runtime.select.scores import Attention, Learned, Oracle

few_values = st.lists(st.integers(0, 4), min_size=1, max_size=60)  # many ties
any_values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


def scored(scores: list[float]) -> Relevance:
    return Relevance(np.zeros((len(scores), 2), np.float32), scores=np.array(scores, np.float32))


@given(st.one_of(few_values, any_values), st.data())
def test_top_k_keeps_the_highest_in_order(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    kept = top_k(np.array(scores, np.float32), count).tolist()
    best_first = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert kept == sorted(best_first[:count])


@given(few_values)
def test_all_tokens_are_the_identity(scores: list[float]) -> None:
    assert Learned()(scored(scores), len(scores)).tolist() == list(range(len(scores)))


def test_each_ranking_reads_its_own_values() -> None:
    relevance = Relevance(
        np.zeros((3, 2), np.float32),
        scores=np.array([0.5, 0.3, 0.2], np.float32),
        attention=np.array([0.2, 0.5, 0.3], np.float32),
    )
    oracle = Oracle(np.array([0.0, 0.1, 0.9], np.float32))
    assert [selector(relevance, 1).tolist() for selector in (Learned(), Attention(), oracle)] == [[0], [1], [2]]
    assert (Learned.needs, Attention.needs, Oracle.needs) == ({"scores"}, {"attention"}, set())


def test_an_oracle_of_another_sample_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"relevance for \(3,\) visual tokens, the request has 2"):
        select(scored([0.5, 0.5]), Budget(tokens=1), Oracle(np.ones(3, np.float32)))


def test_a_selection_reports_what_was_decided() -> None:
    selection = select(scored([0.1, 0.4, 0.2, 0.3]), Budget(tokens=2), Learned(), note="a note")
    assert selection.to_dict() == {
        "keep_indices": [1, 3],
        "num_visual_tokens": 4,
        "selector": "learned",
        "reason": "a note",
        "scores": pytest.approx([0.1, 0.4, 0.2, 0.3]),
    }
    assert keep_everything(2, "why").to_dict() == {
        "keep_indices": [0, 1],
        "num_visual_tokens": 2,
        "selector": "all",
        "reason": "why",
        "scores": None,
    }


def test_mass_sums_the_weights() -> None:
    assert select(scored([3.0, 2.0, 1.0, 0.0]), Budget(mass=0.8), Learned()).keep_indices.tolist() == [0, 1]
    assert select(scored([0.0, 1.0, 9.0, 0.0]), Budget(mass=0.8), Learned()).keep_indices.tolist() == [2]


@pytest.mark.parametrize("name", ["random", "divprune"])
def test_a_mass_without_weights_is_an_error(name: str) -> None:
    with pytest.raises(RequestError, match=f"selector '{name}' has no scores to sum. Set keep"):
        select(scored([0.5, 0.5]), Budget(mass=0.5), open_selector(name))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(BackendError, match="not finite"):
        select(scored([0.5, bad]), Budget(tokens=1), Learned())


def test_a_function_is_a_selector_of_its_name() -> None:
    def lowest(relevance: Relevance, count: int) -> np.ndarray:
        assert relevance.scores is not None
        return top_k(-relevance.scores, count)

    selection = select(scored([0.1, 0.4, 0.2, 0.3]), Budget(ratio=0.5), Custom(lowest))
    assert selection.keep_indices.tolist() == [0, 2]
    assert selection.selector == "lowest"


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
def test_a_policy_that_breaks_its_contract_is_an_error(policy: Policy) -> None:
    with pytest.raises(RequestError, match="did not give 2 ascending indices below 4"):
        select(scored([0.1, 0.4, 0.2, 0.3]), Budget(tokens=2), Custom(policy))


def test_an_unknown_selector_is_an_error() -> None:
    with pytest.raises(
        RequestError, match=r"no selector 'top_k'. Choose one of foveated, learned, attention, .*learned-dpp\.$"
    ):
        open_selector("top_k")


def test_a_selector_is_a_value() -> None:
    first, second = open_selector("learned"), open_selector("learned")
    assert isinstance(first, Selector)
    assert first == second
    assert hash(first) == hash(second)

"""Sampling: what may be drawn, how likely, and again with the same seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import BackendError, RequestError
from foveate.runtime import Sampling
from foveate.runtime.sampling import greedy

logits_lists = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40, unique=True)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 1, "top_k": 0},
        {"temperature": 1, "top_k": 1.5},
        {"temperature": 1, "top_p": 0},
        {"temperature": 1, "top_p": 1.5},
        {"temperature": 1, "top_p": math.nan},
        {"seed": -1},
        {"seed": "a"},
        {"top_k": 5},
        {"top_p": 0.5},
    ],
)
def test_bad_settings_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Sampling(**options)


@given(logits_lists)
def test_greedy_takes_the_likeliest(logits: list[float]) -> None:
    array = np.array(logits, np.float32)
    assert Sampling().sampler()(array) == greedy(array) == logits.index(max(logits))


def test_nan_logits_are_an_error() -> None:
    logits = np.array([1.0, np.nan, 3.0], np.float32)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(BackendError, match="NaN logits"):
            sampling.sampler()(logits)


@given(logits_lists, st.integers(1, 50), st.floats(0.1, 5))
def test_top_k_leaves_the_k_likeliest(logits: list[float], top_k: int, temperature: float) -> None:
    tokens, probabilities = Sampling(temperature=temperature, top_k=top_k).support(np.array(logits, np.float32))
    assert tokens.tolist() == sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    weights = np.exp(np.array([logits[token] for token in tokens]) / temperature - max(logits) / temperature)
    np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-6)


@given(logits_lists, st.floats(0, 1, exclude_min=True))
def test_top_p_leaves_the_fewest_tokens_that_reach_it(logits: list[float], top_p: float) -> None:
    array = np.array(logits, np.float32)
    every, probabilities = Sampling(temperature=1.0).support(array)
    tokens, renormalised = Sampling(temperature=1.0, top_p=top_p).support(array)
    cumulative = np.cumsum(probabilities)
    assert tokens.tolist() == every[: len(tokens)].tolist()
    assert cumulative[len(tokens) - 1] >= top_p * (1 - 1e-12)
    assert len(tokens) == 1 or cumulative[len(tokens) - 2] < top_p * (1 + 1e-12)
    assert renormalised.sum() == pytest.approx(1)


def test_a_seed_draws_the_same_tokens_again() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampling(temperature=1.0, seed=seed).sampler()
        return [sampler(logits) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    sampler = Sampling(temperature=1.0, seed=0).sampler()
    logits = np.log(probabilities).astype(np.float32)
    counts = np.bincount([sampler(logits) for _ in range(4_000)], minlength=3)
    np.testing.assert_allclose(counts / 4_000, probabilities, atol=0.03)


def test_an_extreme_temperature_stays_finite() -> None:
    logits = np.array([1e4, -1e4, 0], np.float32)
    assert Sampling(temperature=1e-6, seed=0).sampler()(logits) == 0
    assert Sampling(temperature=1e6, seed=0).sampler()(logits) in (0, 1, 2)

"""The channels that a scorer sees."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from foveate.exporter.scorer import FEATURES
from foveate.exporter.scorer.features import FirstLayer, count_channels, features
from tests.exporter.scorer.synthetic import first_layer

LOGARITHMS = ("mean", "max", "last", "deviation", "peaked")
CENTRED = ("mean", "last", "peaked")

FIRST_LAYERS = st.builds(first_layer, st.integers(1, 4), st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))


@given(FIRST_LAYERS)
@example(first_layer(heads=2, rows=1, tokens=9, seed=0))
@example(first_layer(heads=1, rows=1, tokens=1, seed=0))
def test_every_group_has_its_channels(first: FirstLayer) -> None:
    heads, _, tokens = first.attention.shape
    counts = count_channels(list(FEATURES), heads)
    for group, make in FEATURES.items():
        found = make(first)
        assert found.shape == (counts[group], tokens), group
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all(), group


@given(FIRST_LAYERS, st.permutations(list(FEATURES)))
def test_groups_stand_in_the_order_asked_for(first: FirstLayer, groups: list[str]) -> None:
    found = features(first, groups).split(list(count_channels(groups, len(first.attention)).values()))
    for group, channels in zip(groups, found, strict=True):
        torch.testing.assert_close(channels, FEATURES[group](first))


@given(FIRST_LAYERS)
def test_centred_groups_have_no_mean(first: FirstLayer) -> None:
    for group in CENTRED:
        assert FEATURES[group](first).mean(dim=-1).abs().max() < 1e-5, group


@given(FIRST_LAYERS, st.floats(0.01, 1))
def test_how_much_goes_to_the_text_does_not_matter(first: FirstLayer, share: float) -> None:
    less = replace(first, attention=first.attention * share)
    assume(less.attention.min() > 1e-6)  # the constant that keeps logarithms finite, 1e-12, is no part of the claim
    for group in LOGARITHMS:
        torch.testing.assert_close(FEATURES[group](less), FEATURES[group](first), rtol=0, atol=1e-5, msg=group)


@given(FIRST_LAYERS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_matters_for_the_last_only(first: FirstLayer, random: Random) -> None:
    order = list(range(first.attention.shape[1]))
    random.shuffle(order)
    shuffled = replace(first, attention=first.attention[:, order], text_embeds=first.text_embeds[order])
    for group in set(FEATURES) - {"last"}:
        torch.testing.assert_close(FEATURES[group](shuffled), FEATURES[group](first), rtol=1e-5, atol=1e-5, msg=group)
    torch.testing.assert_close(FEATURES["last"](shuffled), first.contrast[:, order[-1]])


def test_values_of_a_small_example() -> None:
    attention = torch.tensor([[[0.1, 0.4], [0.2, 0.2]]])  # one head, two rows, two visual tokens
    first = FirstLayer(attention, torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    half = torch.log(torch.tensor(4.0)) / 2  # what the first row says of the second token; the other says nothing
    mean = torch.log(torch.tensor(2.0)) / 2  # of 0.15 and 0.3
    expected: dict[str, list[list[Tensor | float]]] = {
        "attention": [[0.3, 0.6]],
        "mean": [[-mean, mean]],
        "max": [[0.0, half]],
        "last": [[0.0, 0.0]],
        "deviation": [[half / 2, half / 2]],
        "peaked": [[-half, half]],
        "cosine": [[1.0, 0.8], [0.5, 0.7]],
    }
    for group, values in expected.items():
        torch.testing.assert_close(FEATURES[group](first), torch.tensor(values), rtol=1e-5, atol=1e-5, msg=group)


@pytest.mark.parametrize("attention", [0.0, 1e-30])
def test_attention_that_float32_lost_is_no_infinity(attention: float) -> None:
    first = first_layer(2, 3, 5, seed=0)
    first.attention[:, :, 2] = attention
    assert torch.isfinite(features(first, list(FEATURES))).all()

"""The networks: one sample as it is deployed and many as they are trained, and configs that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.engines import Grid, ScorerError, find_neighbours
from foveate.exporter.scorer import FEATURES, NETWORKS, Label, NetworkConfig, Scorer
from foveate.exporter.scorer.features import FirstLayer, features
from foveate.exporter.scorer.network import MAX_WEIGHTS, Depthwise, row_neighbours
from foveate.exporter.scorer.train import Prepared, TrainOptions, divergence, prepare
from tests.exporter.scorer.synthetic import CHANNELS, HEADS, first_layer

GRIDS = [(1, 3, 4), (2, 2, 5), (1, 1, 1)]
SMALL = {
    "grid": NetworkConfig(width=12, depth=3),
    "grid without context": NetworkConfig(width=12, depth=2, context=False),
    "grid without neighbours": NetworkConfig(width=12, depth=2, neighbourhood=False),
    "sequence": NetworkConfig("sequence", depth=3),
    "sequence of one channel": NetworkConfig("sequence", ("attention",), depth=2),
}


def make_scorer(config: NetworkConfig) -> Scorer:
    """A scorer of random weights and scales; logarithms of its scores have a standard deviation of about 1."""
    torch.manual_seed(1)
    scorer = Scorer(config, HEADS).eval()
    torch.nn.init.normal_(scorer.shift)
    torch.nn.init.uniform_(scorer.scale, 0.5, 2)
    spread = torch.log(score(scorer, make_first(GRIDS), GRIDS)).std()
    with torch.no_grad():
        scorer.network.head.weight /= spread
    return scorer


def make_first(grids: Sequence[Grid], seed: int = 0) -> FirstLayer:
    return first_layer(HEADS, rows=4, tokens=sum(frames * height * width for frames, height, width in grids), seed=seed)


def prepare_first(scorer: Scorer, first: FirstLayer, grids: Sequence[Grid], relevance: Tensor) -> Prepared:
    """A label with what the first layer knows, as training prepares it."""
    label = Label(0, 0, True, tuple(grids), features(first, list(FEATURES)).numpy(), relevance.numpy())
    stored = [group for group, count in CHANNELS.items() for _ in range(count)]
    rows = [place for group in scorer.config.features for place, name in enumerate(stored) if name == group]
    return prepare(label, np.array(rows), scorer, TrainOptions(masked_share=0))


@torch.no_grad()
def score(scorer: Scorer, first: FirstLayer, grids: Sequence[Grid]) -> Tensor:
    """What the deployed scorer gives."""
    return scorer(first, torch.from_numpy(find_neighbours(grids))) if scorer.on_grid else scorer(first)


@torch.no_grad()
def score_in_batch(scorer: Scorer, first: FirstLayer, grids: Sequence[Grid], others: Sequence[Prepared]) -> Tensor:
    """What training sees: the divergence to a target that has everything at one token is - log of its score."""
    targets = torch.eye(first.attention.shape[-1])
    losses = divergence(scorer, [*others, *(prepare_first(scorer, first, grids, target) for target in targets)])
    return torch.exp(-losses[len(others) :])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("grids", [GRIDS, GRIDS[:1], [(3, 2, 2)]], ids=["images and video", "image", "video"])
def test_training_sees_the_deployed_scores_whatever_else_is_in_the_batch(name: str, grids: Sequence[Grid]) -> None:
    scorer, first = make_scorer(SMALL[name]), make_first(grids)
    deployed = score(scorer, first, grids)
    assert deployed.dtype == torch.float32
    assert (deployed > 0).all()
    assert float(deployed.sum()) == pytest.approx(1, abs=1e-5)
    assert deployed.max() > 2 * deployed.min()
    others = [
        prepare_first(scorer, make_first(other, seed), other, torch.ones(tokens))
        for seed, (other, tokens) in enumerate([([(1, 6, 7), (1, 2, 9)], 60), ([(1, 1, 2)], 2)], start=1)
    ]
    for batch in ([], others):
        torch.testing.assert_close(score_in_batch(scorer, first, grids, batch), deployed, rtol=1e-4, atol=1e-6)


def test_scores_that_differ_by_hundreds_of_nats_have_a_loss() -> None:
    scorer = make_scorer(SMALL["grid"])
    with torch.no_grad():
        scorer.network.head.weight *= 300
        samples = [prepare_first(scorer, make_first(GRIDS, seed), GRIDS, torch.ones(33)) for seed in (0, 1)]
        losses = divergence(scorer, samples)
    assert torch.isfinite(losses).all()
    assert losses.min() > 100


@torch.no_grad()
def changed_by(scorer: Scorer, grids: Sequence[Grid], token: int) -> list[int]:
    """Whose logits change when the channels of one token do."""
    around = torch.from_numpy(find_neighbours(grids)) if scorer.on_grid else row_neighbours(12)
    x = torch.randn(len(around), len(scorer.shift), generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[token] += 1
    before, after = (scorer.network(channels, around, lambda y: y.mean(dim=0, keepdim=True)) for channels in (x, changed))
    return torch.nonzero((before - after).abs() > 1e-6).flatten().tolist()


def test_a_block_sees_the_cells_around_a_token_and_no_other_image() -> None:
    scorer, grids = make_scorer(NetworkConfig(width=8, depth=1, context=False)), [(1, 2, 3), (2, 3, 3)]
    first, second = 6, 6 + 9  # where the frames of the video begin
    assert changed_by(scorer, grids, 2) == [1, 2, 4, 5]
    assert changed_by(scorer, grids, first + 4) == list(range(first, second))
    assert changed_by(scorer, grids, second) == [second + cell for cell in (0, 1, 3, 4)]


def test_without_neighbours_and_context_a_token_is_on_its_own() -> None:
    scorer = make_scorer(NetworkConfig(width=8, depth=3, context=False, neighbourhood=False))
    assert changed_by(scorer, [(1, 3, 4)], 5) == [5]


def test_with_context_every_token_sees_every_image() -> None:
    scorer = make_scorer(NetworkConfig(width=8, depth=1, neighbourhood=False))
    assert changed_by(scorer, [(1, 2, 3), (1, 2, 3)], 2) == list(range(12))


def test_the_sequence_goes_on_from_row_to_row() -> None:
    scorer = make_scorer(NetworkConfig("sequence", depth=1))
    assert set(changed_by(scorer, [(1, 3, 4)], 4)) <= {3, 4, 5}
    assert {3, 5} <= {seen for token in range(3, 6) for seen in changed_by(scorer, [(1, 3, 4)], token)}
    assert row_neighbours(3).tolist() == [[3, 0, 1], [0, 1, 2], [1, 2, 3]]


SIDE = st.integers(1, 4)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 2), SIDE, SIDE), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_a_convolution_and_its_gradient(grids: list[Grid], in_a_row: bool, seed: int) -> None:
    around = torch.from_numpy(find_neighbours(grids))
    around = row_neighbours(len(around)) if in_a_row else around
    torch.manual_seed(seed)
    convolution, x = Depthwise(3, around.shape[1]), torch.randn(len(around), 3, requires_grad=True)
    torch.nn.init.normal_(convolution.bias)
    expected = torch.stack(
        [
            convolution.bias
            + sum(x[other] * convolution.weight[place] for place, other in enumerate(row.tolist()) if other < len(x))
            for row in around
        ]
    )
    found, weights = convolution(x, around), (x, convolution.weight, convolution.bias)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(convolution(x.detach(), around), expected)
    direction = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad((y * direction).sum(), weights) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def count_weights(scorer: Scorer) -> int:
    return sum(parameter.numel() for parameter in scorer.network.parameters())


def test_the_papers_network_has_the_papers_size() -> None:
    assert 170_000 < count_weights(Scorer(NetworkConfig("sequence", ("attention",), depth=5), 28)) < 180_000


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_default_networks_fit(kind: str) -> None:
    assert count_weights(Scorer(NetworkConfig(kind), 32)) <= MAX_WEIGHTS


@pytest.mark.parametrize("width", [150, 1_000_000])
def test_a_network_that_is_too_large_is_refused_before_it_takes_memory(width: int) -> None:
    with pytest.raises(ScorerError, match=r"would have \d+ weights, at most 300000 fit\. Lower width or depth"):
        Scorer(NetworkConfig(width=width), HEADS)


def test_more_blocks_than_the_papers_network_has() -> None:
    with pytest.raises(ScorerError, match=r"depth is 7, 'sequence' has at most 5 blocks\. Lower it"):
        Scorer(NetworkConfig("sequence", depth=7), HEADS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"kind": "transformer"}, "kind 'transformer' is not one of grid, sequence"),
        ({"features": ["mean", "colour"]}, r"features \['colour'\] are not among attention, mean"),
        ({"features": []}, "are not among"),
        ({"features": ["mean", "max", "mean"]}, "repeat"),
        ({"kernel_size": 3}, "kernel_size"),
        ({"width": 0}, ">= 1"),
        ({"depth": "5"}, "Expected `int`, got `str`"),
        ({"context": "yes"}, "Expected `bool`"),
    ],
)
def test_a_config_that_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(values, NetworkConfig)


def test_the_default_sees_everything_but_the_papers_channel() -> None:
    assert set(FEATURES) - set(NetworkConfig().features) == {"attention"}

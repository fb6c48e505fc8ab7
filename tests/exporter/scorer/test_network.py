"""The networks: one sample as it is deployed and many as they are trained, and configs that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.engines import ScorerError
from foveate.exporter.scorer import FEATURES, NETWORKS, NetworkConfig, Scorer
from foveate.exporter.scorer.features import FirstLayer, features
from foveate.exporter.scorer.network import MAX_WEIGHTS
from foveate.exporter.scorer.train import Prepared, divergence
from foveate.runtime.canvas import canvas_feeds
from tests.exporter.scorer.synthetic import HEADS, Grid, first_layer

GRIDS = [(1, 3, 4), (2, 2, 5), (1, 1, 1)]
SMALL = {
    "grid": NetworkConfig(width=12, depth=3),
    "grid without context": NetworkConfig(width=12, depth=2, kernel_size=5, context=False),
    "sequence": NetworkConfig("sequence", depth=3),
    "sequence of one channel": NetworkConfig("sequence", ("attention",), depth=2, kernel_size=5),
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


def pages_of(scorer: Scorer, grids: Sequence[Grid], tokens: int) -> tuple[tuple[int, int], ...]:
    if scorer.flat:
        return ((1, tokens),)
    return tuple((height, width) for frames, height, width in grids for _ in range(frames))


def prepare(scorer: Scorer, first: FirstLayer, grids: Sequence[Grid], target: Tensor) -> Prepared:
    channels = scorer.normalise(features(first, scorer.config.features))
    return Prepared(channels, target, pages_of(scorer, grids, len(target)))


@torch.no_grad()
def score(scorer: Scorer, first: FirstLayer, grids: Sequence[Grid]) -> Tensor:
    """What the deployed scorer gives."""
    if scorer.flat:
        return scorer(first)
    feeds = {name: torch.from_numpy(array) for name, array in canvas_feeds(grids).items()}
    return scorer(first, **feeds)


@torch.no_grad()
def score_in_batch(scorer: Scorer, first: FirstLayer, grids: Sequence[Grid], others: Sequence[Prepared]) -> Tensor:
    """What training sees: the divergence to a target that has everything at one token is - log of its score."""
    targets = torch.eye(first.attention.shape[-1])
    losses = divergence(scorer, [*others, *(prepare(scorer, first, grids, target) for target in targets)])
    return torch.exp(-losses[len(others) :])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("grids", [GRIDS, GRIDS[:1], [(3, 2, 2)]], ids=["images and video", "image", "video"])
def test_training_sees_the_deployed_scores(name: str, grids: Sequence[Grid]) -> None:
    scorer, first = make_scorer(SMALL[name]), make_first(grids)
    deployed = score(scorer, first, grids)
    assert deployed.dtype == torch.float32
    assert (deployed > 0).all()
    assert float(deployed.sum()) == pytest.approx(1, abs=1e-5)
    assert deployed.max() > 2 * deployed.min()
    larger, smaller = [(1, 6, 7), (1, 2, 9)], [(1, 1, 2)]
    others = [
        prepare(scorer, make_first(other, seed), other, torch.ones(tokens) / tokens)
        for seed, (other, tokens) in enumerate([(larger, 60), (smaller, 2)], start=1)
    ]
    for batch in ([], others):
        torch.testing.assert_close(score_in_batch(scorer, first, grids, batch), deployed, rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_an_empty_rim_of_the_canvas_changes_nothing(grids: list[Grid], below: int, beside: int, seed: int) -> None:
    scorer, first = make_scorer(SMALL["grid"]), make_first(grids, seed)
    mask = torch.from_numpy(canvas_feeds(grids)["canvas_mask"])
    wider = torch.nn.functional.pad(mask, (0, beside, 0, below))
    cells = torch.nonzero(wider.flatten()).flatten()
    with torch.no_grad():
        found = scorer(first, wider, cells)
    torch.testing.assert_close(found, score(scorer, first, grids), rtol=1e-4, atol=1e-6)


def test_images_do_not_see_each_other_but_share_the_scores() -> None:
    scorer, first = make_scorer(SMALL["grid"]), make_first(GRIDS)
    together = score(scorer, first, GRIDS)
    channels = prepare(scorer, first, GRIDS, together).channels[:, :12]
    with torch.no_grad():
        logits = scorer.network(channels.reshape(1, -1, 3, 4), torch.ones(1, 1, 3, 4)).flatten()
    torch.testing.assert_close(together[:12] / together[:12].sum(), torch.softmax(logits, 0), rtol=1e-4, atol=1e-6)
    assert 0.1 < float(together[:12].sum()) < 0.9


def test_rows_and_columns_are_neighbours_on_the_grid() -> None:
    config = NetworkConfig(features=("mean",), width=4, depth=1, kernel_size=3, context=False)
    scorer, first = make_scorer(config), make_first([(1, 5, 6)])
    changed = FirstLayer(first.attention.clone(), first.visual_embeds, first.text_embeds)
    changed.attention[:, :, 2 * 6 + 3] *= 5
    mask = torch.ones(1, 1, 5, 6)
    with torch.no_grad():
        # Centring moves every token alike, so the channels of the others are put back.
        before, after = (scorer.normalise(features(f, config.features)) for f in (first, changed))
        moved = before.clone()
        moved[:, 15] = after[:, 15]
        logits = [scorer.network(x.reshape(1, -1, 5, 6), mask)[0] for x in (before, moved)]
    differs = torch.nonzero((logits[0] - logits[1]).abs() > 1e-6).tolist()
    assert differs == [[row, column] for row in (1, 2, 3) for column in (2, 3, 4)]


def count_weights(scorer: Scorer) -> int:
    return sum(parameter.numel() for parameter in scorer.network.parameters())


def test_the_papers_network_has_the_papers_size() -> None:
    assert 170_000 < count_weights(Scorer(NetworkConfig("sequence", ("attention",)), 28)) < 180_000


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
        ({"kernel_size": 4}, "kernel_size 4 is not odd"),
        ({"kernel_size": 0}, ">= 1"),
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

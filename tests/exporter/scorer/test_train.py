"""Training on labels of a known rule, and options that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import LabelError, ScorerError, find_neighbours
from foveate.exporter.scorer import NETWORKS, Epoch, Label, NetworkConfig, Scorer, TrainOptions, read_scorer, train
from foveate.exporter.scorer.store import SCHEMA_VERSION
from foveate.exporter.scorer.train import Prepared, batches, fit, fit_scale, split, target, validate
from tests.exporter.scorer.synthetic import CHANNELS, HEADS, make_label, make_labels, write_labels

SMALL = NetworkConfig(features=("mean", "max"), width=16, depth=2)
QUICK = TrainOptions(SMALL, epochs=2)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 questions about 100 images. Not to be changed."""
    return write_labels(tmp_path_factory.mktemp("labels") / "labels", make_labels(200))


def uniform_loss(labels: Sequence[Label], options: TrainOptions) -> float:
    """Mean divergence of the targets to scores that are all the same."""
    targets = [target(torch.from_numpy(label.relevance), options.masked_share, options.exponent) for label in labels]
    return float(np.mean([math.log(len(t)) + torch.xlogy(t, t).sum() for t in targets]))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_rule_is_learned(labels: Path, kind: str) -> None:
    network = NetworkConfig(kind, ("mean", "max"), width=16, depth=2)
    options = TrainOptions(network, epochs=20, batch_size=16, learning_rate=1e-2, masked_share=0.5, exponent=1)
    told: list[Epoch] = []
    result = train(labels, None, options, lambda number, epoch: told.append(epoch))
    _, validation = split(make_labels(200), options)
    assert result.history[result.best_epoch].validation < 0.3 * uniform_loss(validation, options)
    assert told == list(result.history)


def test_the_file_says_how_the_scorer_came_about(labels: Path, tmp_path: Path) -> None:
    result = train(labels, tmp_path / "scorer.safetensors", QUICK)
    scorer, facts = read_scorer(tmp_path / "scorer.safetensors")
    assert facts == result.facts
    assert (facts.schema_version, facts.checkpoint, facts.checkpoint_sha256) == (SCHEMA_VERSION, "tiny", "a" * 64)
    assert (facts.heads, facts.network) == (HEADS, SMALL)
    assert facts.training["training_samples"] + facts.training["validation_samples"] == 200
    assert facts.training["most_visual_tokens"] == 20
    assert facts.training["objective"] == "margin"
    assert facts.training["validation_loss"] == pytest.approx(result.history[result.best_epoch].validation, abs=1e-6)
    for name, value in scorer.state_dict().items():
        torch.testing.assert_close(value, result.scorer.state_dict()[name], rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.safetensors"]


def test_the_same_seed_gives_the_same_bytes(labels: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(labels, tmp_path / name, TrainOptions(SMALL, epochs=2, seed=seed))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_channels_get_the_scale_of_the_training_data() -> None:
    torch.manual_seed(0)
    scorer = Scorer(SMALL, HEADS)
    data = [torch.randn(4, 30) * torch.tensor([[0.1], [1.0], [10.0], [3.0]]) + 5 for _ in range(3)]
    fit_scale(scorer, data)
    found = scorer.normalise(torch.cat(data, dim=1))
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std(dim=1), torch.ones(4), rtol=0, atol=1e-4)


def test_the_scale_is_that_of_the_chosen_channels(labels: Path) -> None:
    options = TrainOptions(NetworkConfig(features=("max", "mean"), width=8, depth=1), epochs=1)
    training, _ = split(make_labels(200), options)
    first = CHANNELS["attention"]  # `mean` stands behind it, then `max`
    rows = [first + HEADS, first + HEADS + 1, first, first + 1]
    seen = np.concatenate([label.features[rows] for label in training], axis=1)
    shift = train(labels, None, options).scorer.shift
    np.testing.assert_allclose(shift, seen.mean(axis=1), rtol=0, atol=1e-4)
    assert np.diff(np.sort(shift)).min() > 1e-3


def test_only_the_chosen_channels_are_seen(tmp_path: Path) -> None:
    labels = make_labels(20)
    for label in labels:
        label.features[-2:] = 1000  # the two of `cosine`
    folder = write_labels(tmp_path / "labels", labels)
    train(folder, tmp_path / "with", QUICK)
    train(write_labels(tmp_path / "others", make_labels(20)), tmp_path / "without", QUICK)
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


# Splits and batches


@given(st.integers(4, 60), st.integers(2, 20), st.floats(0.01, 0.99), st.integers(0, 5), st.none() | st.integers(1, 70))
def test_no_image_is_in_both_parts(count: int, images: int, share: float, seed: int, limit: int | None) -> None:
    every = make_labels(count, min(images, count))
    options = TrainOptions(validation_share=share, seed=seed, limit=limit)
    training, validation = split(every, options)
    assert training
    assert validation
    assert {label.image for label in training}.isdisjoint(label.image for label in validation)
    assert len(training) + len(validation) == count or len(training) == limit
    assert [label.sample for label in training] == sorted({label.sample for label in training})


def test_wrong_answers_are_left_out() -> None:
    every = [make_label(sample, sample, [(1, 2, 3)], correct=sample % 3 > 0) for sample in range(12)]
    training, validation = split(every, TrainOptions())
    assert all(label.correct for label in [*training, *validation])
    assert len(training) + len(validation) == 8


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(tmp_path: Path, count: int) -> None:
    every = [make_label(sample, 0, [(1, 2, 3)], correct=sample < 3 * count) for sample in range(5)]
    folder = write_labels(tmp_path / "labels", every)
    with pytest.raises(ScorerError, match=rf"of {count} images that were answered correctly, expected at least 2\. Label"):
        train(folder, tmp_path / "scorer.safetensors", QUICK)
    assert not (tmp_path / "scorer.safetensors").exists()


def make_noise(count: int, seed: int) -> list[Prepared]:
    """Random channels with targets that have nothing to do with them."""
    random = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(count):
        around = torch.from_numpy(find_neighbours([(1, 2 + index % 3, 3)]))
        relevance = torch.rand(len(around), generator=random)
        samples.append(Prepared(torch.randn(len(around), 4, generator=random), target(relevance, 0.5, 1), around))
    return samples


@given(st.integers(1, 60), st.integers(1, 9), st.none() | st.integers(0, 9))
def test_batches_hold_every_sample_once(count: int, size: int, seed: int | None) -> None:
    samples = make_noise(count, seed=0)
    found = list(batches(samples, size, None if seed is None else np.random.default_rng(seed)))
    assert all(0 < len(batch) <= size for batch in found)
    assert sorted(id(sample) for batch in found for sample in batch) == sorted(map(id, samples))


# The target


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40), st.floats(0, 0.99), st.sampled_from([1.0, 0.5]))
def test_the_target_is_the_relevance_without_its_lowest_share(values: list[float], share: float, exponent: float) -> None:
    relevance = torch.tensor(values)
    found = target(relevance, share, exponent)
    masked = int(share * len(values))
    kept = torch.sort(relevance).values[masked:].pow(exponent).sum()
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert (found >= 0).all()
    if kept > 0:
        assert int((found == 0).sum()) >= masked
        on = found > 0
        torch.testing.assert_close(found[on] * kept, relevance[on].pow(exponent))
        assert on.all() or relevance[on].min() >= relevance[~on].max()
    else:
        torch.testing.assert_close(found, torch.full_like(found, 1 / len(values)))


# The end of the training


def fit_noise(**changes: Any) -> tuple[Scorer, list[Prepared], list[Epoch], int, TrainOptions]:
    """Learns noise by heart, so validation soon gets worse."""
    options = TrainOptions(SMALL, **{"epochs": 60, "patience": 4, "batch_size": 8, "learning_rate": 1e-2, **changes})
    torch.manual_seed(0)
    scorer, validation = Scorer(SMALL, HEADS), make_noise(12, seed=2)
    history, best = fit(scorer, make_noise(12, seed=1), validation, options, lambda number, epoch: None)
    return scorer, validation, history, best, options


def test_early_stopping_keeps_the_weights_of_the_best_epoch() -> None:
    scorer, validation, history, best, options = fit_noise()
    losses = [epoch.validation for epoch in history]
    assert best == int(np.argmin(losses))
    assert best > 0
    assert len(history) == best + 1 + options.patience < options.epochs
    assert validate(scorer, validation, options.batch_size) == pytest.approx(losses[best], rel=1e-6)
    assert losses[-1] > losses[best]
    assert not scorer.training


def test_without_early_stopping_the_best_epoch_is_kept_too() -> None:
    scorer, validation, history, best, options = fit_noise(patience=100, epochs=12)
    losses = [epoch.validation for epoch in history]
    assert len(losses) == 12
    assert losses[-1] > losses[best] == min(losses)
    assert validate(scorer, validation, options.batch_size) == pytest.approx(losses[best], rel=1e-6)


def test_a_training_that_diverges_writes_nothing(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match=r"the validation loss became (nan|inf)\. Lower learning_rate"):
        train(labels, tmp_path / "scorer.safetensors", TrainOptions(SMALL, epochs=1, learning_rate=1e30))
    assert not list(tmp_path.iterdir())


def test_labels_that_are_not_finished(tmp_path: Path) -> None:
    folder = write_labels(tmp_path / "labels", make_labels(12), shard_size=4)
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(LabelError, match="is not finished"):
        train(folder, tmp_path / "scorer.safetensors", QUICK)


# Options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected a number above 0. Raise it"),
        ({"patience": -1}, "patience is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1, expected at least 0"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"masked_share": 1}, "masked_share is 1.*, expected 0 or more and less than 1"),
        ({"masked_share": -0.1}, "masked_share is -0.1"),
        ({"validation_share": 0}, "validation_share is 0.*, expected a share between 0 and 1"),
        ({"validation_share": 1}, "validation_share is 1"),
        ({"surprise": 1}, "options.json: unknown keys surprise. Expected a JSON object with some of network, epochs"),
        ({"network": {"surprise": 1}}, r"options.json: .*`surprise` - at `\$.network`"),
        ({"network": {"kind": "transformer"}}, "kind 'transformer' is not one of grid, sequence"),
        ({"network": {"features": ["colour"]}}, r"features \['colour'\] are not among attention, mean"),
        ({"network": {"width": "64"}}, r"Expected `int`, got `str` - at `\$.network.width`"),
        ({"network": "grid"}, "network"),
        ({"epochs": 2.5}, r"Expected `int`, got `float` - at `\$.epochs`"),
        ({"epochs": None}, r"`\$.epochs`"),
        ([1, 2], "Expected `object`, got `array`"),
        (b"{", "options.json: Input data was truncated"),
        (b"\xff", "options.json: "),
        (b"", "options.json: "),
        (None, r"options.json can't be read: No such file or directory\. Name a JSON file"),
    ],
)
def test_a_config_that_is_refused(tmp_path: Path, values: object, message: str) -> None:
    file = tmp_path / "options.json"
    if values is not None:
        file.write_bytes(values if isinstance(values, bytes) else json.dumps(values).encode())
    with pytest.raises(ScorerError, match=message) as caught:
        TrainOptions.read(file)
    assert "\n" not in str(caught.value)


def test_a_config_and_what_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(
        '{"epochs": 7, "seed": 3, "network": {"kind": "sequence", "features": ["attention"]}}'
    )
    network = NetworkConfig("sequence", ("attention",))
    assert TrainOptions.read(tmp_path / "options.json", seed=5) == TrainOptions(network, epochs=7, seed=5)


def test_features_that_the_labels_do_not_have(tmp_path: Path) -> None:
    folder = write_labels(tmp_path / "labels", make_labels(4))
    header = json.loads((folder / "labels.json").read_text())
    header["channels"]["surprise"] = header["channels"].pop("peaked")
    (folder / "labels.json").write_text(json.dumps(header))
    with pytest.raises(ScorerError, match=r"the labels have no features peaked\. Label again, or choose other features"):
        train(folder, None, TrainOptions(NetworkConfig(features=("mean", "peaked"))))

"""The selectors one by one: each keeps its contract, and does what its paper says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import Grid, RequestError
from foveate.engines.errors import OptionError
from foveate.runtime import SELECTORS, Budget, Relevance, open_selector
from foveate.runtime.select import Selector, select
from foveate.runtime.select.combined import LearnedDPP, LearnedMMR
from foveate.runtime.select.diversity import (
    DART,
    CDPruner,
    CDPrunerFrames,
    CDPrunerOpenVINO,
    CDPrunerOpenVINOFrames,
    DivPrune,
    greedy_dpp,
)
from foveate.runtime.select.scores import Foveated, Learned
from foveate.runtime.select.spatial import Pooling, Random
from foveate.runtime.select.video import EVS

VIDEO: Grid = (3, 2, 2)


def tokens_of(grids: Sequence[Grid]) -> int:
    return sum(math.prod(grid) for grid in grids)


def axes(generator: np.random.Generator, total: int) -> np.ndarray:
    """Rows along the axes: many duplicates and zeros, and every cosine is exactly -1, 0 or 1."""
    rows = np.zeros((total, 3), np.float32)
    rows[np.arange(total), generator.integers(0, 3, total)] = 2.0 ** generator.integers(-2, 3, total)
    return rows * generator.choice([-1, 0, 1], (total, 1)).astype(np.float32)


def normal(generator: np.random.Generator, total: int) -> np.ndarray:
    return generator.standard_normal((total, 5)).astype(np.float32)


def duplicated(generator: np.random.Generator, total: int) -> np.ndarray:
    """Few different rows, each in several places."""
    return normal(generator, 1 + total // 3)[generator.integers(0, 1 + total // 3, total)]


def constant(generator: np.random.Generator, total: int) -> np.ndarray:
    return np.broadcast_to(normal(generator, 1), (total, 5)).copy()


def softmax(generator: np.random.Generator, total: int) -> np.ndarray:
    """Scores that span orders of magnitude."""
    logits = 8 * generator.standard_normal(total)
    return (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)


def few_scores(generator: np.random.Generator, total: int) -> np.ndarray:
    """Ties, and zeros among them."""
    return generator.integers(0, 3, total).astype(np.float32)


def make(
    grids: Sequence[Grid],
    seed: int,
    rows: Callable[[np.random.Generator, int], np.ndarray] = normal,
    scores: Callable[[np.random.Generator, int], np.ndarray] = softmax,
) -> Relevance:
    generator = np.random.default_rng(seed)
    total = tokens_of(grids)
    embeds = rows(generator, total)
    text = generator.standard_normal((4, embeds.shape[1])).astype(np.float32)
    return Relevance(embeds, grids, scores(generator, total), scores(generator, total), text)


relevances = st.builds(
    make,
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), max_size=3).map(lambda grids: [VIDEO, *grids]),
    st.integers(0, 2**32),
    st.sampled_from([normal, axes, duplicated, constant]),
    st.sampled_from([softmax, few_scores]),
)
images = st.tuples(st.just(1), st.integers(1, 7), st.integers(1, 7))


@pytest.mark.parametrize("name", SELECTORS)
@given(relevance=relevances, data=st.data())
def test_every_selector_keeps_its_contract(name: str, relevance: Relevance, data: st.DataObject) -> None:
    selector, count = open_selector(name), data.draw(st.integers(1, len(relevance)))
    assert selector.name == name
    arrays = [relevance.visual_embeds, relevance.scores, relevance.attention, relevance.text_embeds]
    before = [array.copy() for array in arrays if array is not None]
    kept = selector(relevance, count)
    assert kept.dtype == np.int64
    assert kept.shape == (count,)
    assert kept[0] >= 0
    assert kept[-1] < len(relevance)
    assert (np.diff(kept) > 0).all()
    embeds = selector.embeds(relevance, kept)
    assert embeds.dtype == np.float32
    assert embeds.shape == relevance.visual_embeds.shape
    assert np.isfinite(embeds).all()
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(open_selector(name)(relevance, count), kept)


@pytest.mark.parametrize("name", SELECTORS)
@given(relevance=relevances)
def test_all_tokens_are_the_identity(name: str, relevance: Relevance) -> None:
    selector = open_selector(name)
    everything = selector(relevance, len(relevance))
    np.testing.assert_array_equal(everything, np.arange(len(relevance)))
    np.testing.assert_array_equal(selector.embeds(relevance, everything), relevance.visual_embeds)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_takes_a_budget(name: str) -> None:
    relevance, selector = make([(2, 3, 4)], 0), open_selector(name)
    assert len(select(relevance, Budget(ratio=0.5), selector).keep_indices) == 12
    assert len(select(relevance, Budget(tokens=5), selector).keep_indices) == 5
    weights = selector.weights(relevance)
    if weights is None:
        with pytest.raises(RequestError, match=f"budget is a mass, and selector '{name}' has no scores"):
            select(relevance, Budget(mass=0.9), selector)
    else:
        selection = select(relevance, Budget(mass=0.9), selector)
        assert len(selection.keep_indices) == Budget(mass=0.9).count(weights)
        np.testing.assert_array_equal(selection.scores, weights)


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"foveated", "random", "pooling", "evs"}))
@given(different=st.integers(1, 9), seed=st.integers(0, 2**32), data=st.data())
def test_of_equal_tokens_the_first_stay(name: str, different: int, seed: int, data: st.DataObject) -> None:
    """An odd number of odd rows: their products round differently from place to place."""
    generator = np.random.default_rng(seed)
    which = generator.integers(0, different, 101)
    embeds = generator.standard_normal((different, 61)).astype(np.float32)[which]
    scores = softmax(generator, different)[which]
    text = generator.standard_normal((3, 61)).astype(np.float32)
    kept = open_selector(name)(Relevance(embeds, [(1, 1, 101)], scores, scores, text), data.draw(st.integers(1, 101)))
    for token in range(different):
        equals = np.flatnonzero(which == token)
        stayed = np.intersect1d(equals, kept)
        np.testing.assert_array_equal(stayed, equals[: len(stayed)])


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_need_only_what_they_say(name: str) -> None:
    selector, whole = open_selector(name), make([VIDEO], 0)
    found: dict[str, Any] = {need: getattr(whole, need) for need in selector.needs}
    relevance = Relevance(whole.visual_embeds, whole.grids, **found)
    np.testing.assert_array_equal(selector(relevance, 5), selector(whole, 5))


@pytest.mark.parametrize(
    "make_selector",
    [
        lambda: CDPruner("half"),  # type: ignore[arg-type]
        lambda: CDPruner(math.nan),
        lambda: Foveated(1.1),
        lambda: Foveated(video_periphery=math.nan),
        lambda: LearnedMMR(-0.1),
        lambda: LearnedDPP(1.5),
        lambda: DART(0),
        lambda: DART(1.5),  # type: ignore[arg-type]
        lambda: Random(-1),
        lambda: Random(0.5),  # type: ignore[arg-type]
    ],
)
def test_an_unusable_option_is_an_error(make_selector: Callable[[], Selector]) -> None:
    with pytest.raises(OptionError, match=r"selector '[a-z-]+' (is|are) .*, expected a .*\. Use "):
        make_selector()


# foveated


@given(relevances, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.data())
def test_a_fovea_and_an_even_spread_around_it(relevance: Relevance, periphery: float, data: st.DataObject) -> None:
    """`VIDEO` is among the grids, so the video's share holds."""
    count = data.draw(st.integers(1, len(relevance)))
    kept = Foveated(0.1, periphery)(relevance, count)
    around = int(count * periphery)
    best = Learned()(relevance, count - around)
    assert np.isin(best, kept).all()
    others = np.setdiff1d(np.arange(len(relevance)), best)
    places = np.flatnonzero(np.isin(others, kept))
    assert len(places) == around
    # As far apart as they go, and as near to both ends.
    gaps = np.diff(places)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    assert around == 0 or abs(places[0] - (len(others) - 1 - places[-1])) <= 1


def test_a_clip_has_more_around_its_fovea_than_an_image() -> None:
    scores = np.linspace(1, 0, 32, dtype=np.float32)
    in_fovea = {}
    for name, grids in {"images": [(1, 4, 4), (1, 4, 4)], "clip": [(2, 4, 4)], "both": [(1, 4, 4), (2, 2, 4)]}.items():
        kept = Foveated()(Relevance(np.ones((32, 2), np.float32), grids, scores), 16)
        in_fovea[name] = int((np.cumsum(np.diff(kept, prepend=-1) != 1) == 0).sum())
    assert in_fovea == {"images": 12, "clip": 8, "both": 8}


# random


def test_random_depends_on_the_request_and_the_seed() -> None:
    first, second = make([(1, 10, 10)], 0), make([(1, 10, 10)], 1)
    np.testing.assert_array_equal(Random()(first, 30), Random()(second, 30))
    assert Random()(first, 30).tolist() != Random(seed=1)(first, 30).tolist()
    assert Random()(first, 30).tolist() != Random()(replace(first, seed=1), 30).tolist()
    assert Random(seed=1)(first, 30).tolist() != Random()(replace(first, seed=1), 30).tolist()


def test_random_is_uniform() -> None:
    relevance = make([(1, 2, 5)], 0)
    often = np.bincount(np.concatenate([Random(seed)(relevance, 3) for seed in range(2000)]), minlength=10)
    assert (abs(often - 600) < 5 * math.sqrt(2000 * 0.3 * 0.7)).all()  # five standard deviations


# pooling


@given(images, st.integers(0, 2**32), st.data())
def test_the_regions_of_pooling_tile_an_image(grid: Grid, seed: int, data: st.DataObject) -> None:
    """Each region's mean, told apart by one channel per token: their supports are rectangles that share no token."""
    _, rows, columns = grid
    count = data.draw(st.integers(1, rows * columns))
    relevance = Relevance(np.eye(rows * columns, dtype=np.float32), [grid])
    kept = Pooling()(relevance, count)
    means = Pooling().embeds(relevance, kept)[kept]
    regions = means > 0
    np.testing.assert_array_equal(regions.sum(axis=0), 1)
    np.testing.assert_allclose(means.sum(axis=1), 1, rtol=1e-6)
    for region, token in zip(regions.reshape(-1, rows, columns), kept, strict=True):
        tops, lefts = np.nonzero(region)
        height, width = np.ptp(tops) + 1, np.ptp(lefts) + 1
        assert region.sum() == height * width
        assert token == (tops.min() + (height - 1) // 2) * columns + lefts.min() + (width - 1) // 2


@given(st.lists(images, min_size=1, max_size=3), st.integers(0, 2**32), st.data())
def test_pooling_conserves_the_sum(grids: list[Grid], seed: int, data: st.DataObject) -> None:
    relevance = make(grids, seed)
    count = data.draw(st.integers(1, len(relevance)))
    kept = Pooling()(relevance, count)
    pooled = Pooling().embeds(relevance, kept)
    first = 0
    for grid in grids:
        tokens = math.prod(grid)
        inside = kept[(first <= kept) & (kept < first + tokens)]
        assert abs(len(inside) - count * tokens / len(relevance)) < 1  # in proportion to its cells
        if len(inside) == 1:
            np.testing.assert_allclose(
                pooled[inside[0]], relevance.visual_embeds[first : first + tokens].mean(axis=0), rtol=1e-5, atol=1e-6
            )
        first += tokens
    untouched = np.setdiff1d(np.arange(len(relevance)), kept)
    np.testing.assert_array_equal(pooled[untouched], relevance.visual_embeds[untouched])


def test_pooling_means_weighted_by_area_are_the_sum() -> None:
    relevance = make([(2, 5, 7), (1, 4, 4)], 3)
    kept = Pooling()(relevance, 30)
    pooled = Pooling().embeds(relevance, kept)[kept]
    marked = Relevance(np.eye(len(relevance), dtype=np.float32), relevance.grids)
    areas = 1 / Pooling().embeds(marked, kept)[kept].max(axis=1, keepdims=True)
    assert areas.sum() == pytest.approx(len(relevance))
    np.testing.assert_allclose((areas * pooled).sum(axis=0), relevance.visual_embeds.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_pooling_cuts_squares() -> None:
    relevance = Relevance(np.arange(64, dtype=np.float32)[:, None], [(1, 8, 8)])
    kept = Pooling()(relevance, 16)
    np.testing.assert_array_equal(kept.reshape(4, 4), np.arange(64).reshape(8, 8)[::2, ::2])
    means = np.arange(64).reshape(4, 2, 4, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(Pooling().embeds(relevance, kept)[kept, 0], means.ravel())


@pytest.mark.parametrize("selector", [Pooling(), EVS()])
@pytest.mark.parametrize("grids", [[], [(2, 2, 3)]])
def test_grids_of_other_tokens_are_an_error(selector: Selector, grids: list[Grid]) -> None:
    with pytest.raises(RequestError, match=f"selector '{selector.name}' got grids of {tokens_of(grids)} cells for 10 visual"):
        selector(Relevance(np.ones((10, 2), np.float32), grids), 2)


# divprune


def slow_cosine(first: np.ndarray, second: np.ndarray) -> float:
    norm = math.sqrt(sum(float(x) ** 2 for x in first)) * math.sqrt(sum(float(x) ** 2 for x in second))
    return sum(float(x) * float(y) for x, y in zip(first, second, strict=True)) / norm if norm else 0.0


def slow_divprune(embeds: np.ndarray, count: int) -> list[int]:
    total = range(len(embeds))
    distance = [[1 - np.float32(slow_cosine(one, other)) for other in embeds] for one in embeds]

    def first_of_highest(merit: dict[int, np.float32]) -> int:
        return min(merit, key=lambda token: (-merit[token], token))

    kept = [first_of_highest({i: min((distance[i][j] for j in total if j != i), default=np.float32(0)) for i in total})]
    while len(kept) < count:
        kept.append(first_of_highest({i: min(distance[i][j] for j in kept) for i in total if i not in kept}))
    return sorted(kept)


@given(st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([normal, axes]), st.data())
def test_divprune_is_greedy_max_min(
    total: int, seed: int, rows: Callable[[np.random.Generator, int], np.ndarray], data: st.DataObject
) -> None:
    relevance, count = make([(1, 1, total)], seed, rows), data.draw(st.integers(1, total))
    assert DivPrune()(relevance, count).tolist() == slow_divprune(relevance.visual_embeds, count)


# cdpruner and the greedy search that it shares with learned-dpp


def integers(generator: np.random.Generator, total: int) -> np.ndarray:
    """Rows of small whole numbers: their inner products have exact determinants."""
    return generator.integers(-2, 3, (total, 4))


def slow_dpp(kernel: np.ndarray, relevance: np.ndarray, count: int, weight: float) -> list[int]:
    """The determinant of every candidate, at each step; gains equal to six digits are ties."""

    def determinant(kept: Sequence[int]) -> float:
        return float(np.linalg.det(kernel[np.ix_(kept, kept)])) if kept else 1.0

    def merit(token: int) -> tuple[float, float, int]:
        gain = round(determinant([*kept, token]) / determinant(kept), 9) if independent else 0.0
        if gain <= 0 or (weight and relevance[token] == 0):
            return -math.inf, relevance[token], -token
        return round((1 - weight) * math.log(gain) + (weight and weight * math.log(relevance[token])), 6), 0.0, -token

    kept: list[int] = []
    independent = True
    while len(kept) < count:
        left = {token: merit(token) for token in range(len(kernel)) if token not in kept}
        kept.append(max(left, key=lambda token: left[token]))
        independent = left[kept[-1]][0] > -math.inf
    return kept


@given(st.integers(1, 7), st.integers(0, 2**32), st.sampled_from([softmax, few_scores]), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_each_step_of_the_dpp_is_the_best_one(
    total: int, seed: int, scores: Callable[[np.random.Generator, int], np.ndarray], weight: float
) -> None:
    """With ties, duplicates, zeros and more tokens than dimensions; then the highest relevance and the lowest index."""
    generator = np.random.default_rng(seed)
    rows, relevance = integers(generator, total), scores(generator, total)
    kernel = (rows @ rows.T).astype(np.float64)
    order = greedy_dpp(kernel, relevance, total, weight)
    assert order.tolist() == slow_dpp(kernel, relevance, total, weight)


def slow_relevance(embeds: np.ndarray, text: np.ndarray | None) -> np.ndarray:
    """Mean cosine with the instruction's tokens, not scaled."""
    assert text is not None
    return np.array([np.mean([slow_cosine(v, t) for t in text]) for v in embeds], np.float32)


def scaled(asked: np.ndarray) -> np.ndarray:
    return (asked - asked.min()) / np.ptp(asked) if len(asked) > 1 else np.ones(1)


def slow_cdpruner(embeds: np.ndarray, asked: np.ndarray, count: int, weight: float) -> list[int]:
    """The determinant of every candidate's kernel, at each step."""
    similarity = np.array([[slow_cosine(v, u) for u in embeds] for v in embeds])
    kernel = (1 - weight) * similarity + weight * np.diag(asked) @ similarity @ np.diag(asked)
    return sorted(slow_dpp(kernel, asked, count, 0))


@given(st.integers(1, 8), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_cdpruner_maximises_the_determinant_of_its_kernel(total: int, seed: int, weight: float, data: st.DataObject) -> None:
    relevance, count = make([(1, 1, total)], seed), data.draw(st.integers(1, min(total, 4)))
    asked = scaled(slow_relevance(relevance.visual_embeds, relevance.text_embeds))
    assert CDPruner(weight)(relevance, count).tolist() == slow_cdpruner(relevance.visual_embeds, asked, count, weight)


@given(st.integers(0, 2**32))
def test_cdpruner_within_frames_is_cdpruner_of_each_frame(seed: int) -> None:
    """A clip of three frames of two tokens, and an image of eight."""
    relevance = make([(3, 1, 2), (1, 2, 4)], seed)
    embeds, whole = relevance.visual_embeds, slow_relevance(relevance.visual_embeds, relevance.text_embeds)
    parts = [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 14)]
    # 7 of 14: one token of each frame, and four of the image.
    for selector, weight, own in ((CDPrunerFrames(), 1.0, False), (CDPrunerOpenVINOFrames(), 0.5, True)):
        expected = []
        for part, share in zip(parts, (1, 1, 1, 4), strict=True):
            asked = scaled(whole[part]) if own else scaled(whole)[part]
            expected += [part.start + token for token in slow_cdpruner(embeds[part], asked, share, weight)]
        assert selector(relevance, 7).tolist() == expected


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_one_picture_is_one_frame(seed: int, count: int) -> None:
    relevance = make([(1, 3, 4)], seed)
    assert CDPrunerFrames()(relevance, count).tolist() == CDPruner()(relevance, count).tolist()
    assert CDPrunerOpenVINOFrames()(relevance, count).tolist() == CDPrunerOpenVINO()(relevance, count).tolist()


def test_the_forms_of_cdpruner_differ() -> None:
    relevance = make([(2, 4, 4)], 3)
    forms = [open_selector(name)(relevance, 8).tolist() for name in SELECTORS if name.startswith("cdpruner")]
    assert len(forms) == 4
    assert len({tuple(form) for form in forms}) == 4
    assert CDPruner(0.5)(relevance, 8).tolist() == CDPrunerOpenVINO()(relevance, 8).tolist()


@given(relevances, st.data())
def test_frames_get_their_share(relevance: Relevance, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(relevance)))
    kept = CDPrunerFrames()(relevance, count)
    sizes = [rows * columns for frames, rows, columns in relevance.grids for _ in range(frames)]
    ends = np.cumsum(sizes)
    stayed = np.diff([0, *np.searchsorted(kept, ends)])
    assert (abs(stayed - count * np.array(sizes) / len(relevance)) < 1).all()


def test_cdpruner_prefers_what_the_instruction_asks_for() -> None:
    relevance = Relevance(np.eye(6, dtype=np.float32), text_embeds=np.array([[0, 0, 3, 0, 1, 0]], np.float32))
    assert CDPruner()(relevance, 2).tolist() == [2, 4]
    assert CDPruner(weight=0.0)(relevance, 2).tolist() == [0, 1]


# dart


def test_dart_keeps_pivots_and_what_differs_from_them() -> None:
    """Two pivots by L1 norm; the longer one chooses first, and has one more to choose."""
    embeds = np.array([[1, 0, 0], [9, 1, 0], [0, 0, 1], [0, 8, 0], [1, 1, 0], [-1, 0, 0], [0, -1, 0]], np.float32)
    relevance = Relevance(embeds)
    assert DART(pivots=2)(relevance, 2).tolist() == [1, 3]
    assert DART(pivots=2)(relevance, 3).tolist() == [1, 3, 5]  # opposite to token 1
    assert DART(pivots=2)(relevance, 4).tolist() == [1, 3, 5, 6]  # opposite to token 3
    assert DART(pivots=2)(relevance, 5).tolist() == [0, 1, 3, 5, 6]  # 5 and 6 for token 1, then 0 before the equal 2
    assert DART(pivots=1)(relevance, 1).tolist() == [1]


@given(relevances, st.integers(1, 9), st.data())
def test_dart_keeps_the_longest_tokens(relevance: Relevance, pivots: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(relevance)))
    norms = [float(np.abs(row).astype(np.float64).sum()) for row in relevance.visual_embeds]
    longest = sorted(range(len(norms)), key=lambda i: (-norms[i], i))[: min(pivots, count)]
    assert set(longest) <= set(DART(pivots)(relevance, count).tolist())


# evs


def clip(generator: np.random.Generator, frames: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A still background on which one token walks along the diagonal; also where the picture changes in each later frame."""
    background, walker = generator.standard_normal((size, size, 6)), generator.standard_normal(6)
    video = np.repeat(background[None], frames, axis=0)
    steps = np.arange(frames)
    video[steps, steps, steps] = walker
    moved = np.zeros((frames, size, size), bool)
    moved[steps[1:], steps[1:], steps[1:]] = moved[steps[1:], steps[:-1], steps[:-1]] = True
    return video.reshape(-1, 6).astype(np.float32), np.flatnonzero(moved)


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_evs_keeps_the_first_frame_and_what_moved(seed: int, frames: int) -> None:
    embeds, moved = clip(np.random.default_rng(seed), frames, 5)
    kept = EVS()(Relevance(embeds, [(frames, 5, 5)]), 25 + len(moved))
    np.testing.assert_array_equal(kept, np.concatenate([np.arange(25), moved]))


def test_evs_fills_up_with_still_tokens_from_the_first() -> None:
    embeds, moved = clip(np.random.default_rng(0), 3, 5)
    still = np.setdiff1d(np.arange(25, 75), moved)
    kept = EVS()(Relevance(embeds, [(3, 5, 5)]), 25 + len(moved) + 7)
    np.testing.assert_array_equal(kept, np.sort(np.concatenate([np.arange(25), moved, still[:7]])))


def test_evs_compares_within_a_video() -> None:
    """A video, an image and another video: three first frames stay, then what moved in either video."""
    generator = np.random.default_rng(0)
    (first, moved), (second, also_moved) = clip(generator, 2, 3), clip(generator, 4, 4)
    image = generator.standard_normal((6, 6)).astype(np.float32)
    relevance = Relevance(np.concatenate([first, image, second]), [(2, 3, 3), (1, 2, 3), (4, 4, 4)])
    expected = np.concatenate([np.arange(9), moved, 18 + np.arange(6), 24 + np.arange(16), 24 + also_moved])
    np.testing.assert_array_equal(EVS()(relevance, len(expected)), expected)
    np.testing.assert_array_equal(EVS()(relevance, 12), [*range(9), 18, 19, 20])


def test_evs_without_a_video_is_an_error() -> None:
    relevance = Relevance(np.ones((10, 2), np.float32), [(1, 2, 2), (1, 2, 3)])
    with pytest.raises(RequestError, match=r"compares frames of a video, and this request has only images\. Select "):
        EVS()(relevance, 4)


# learned relevance and diversity


@given(relevances, st.data())
def test_mmr_of_weight_one_is_learned(relevance: Relevance, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(relevance)))
    np.testing.assert_array_equal(LearnedMMR(weight=1.0)(relevance, count), Learned()(relevance, count))


@given(st.integers(2, 20), st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.9]), st.data())
def test_mmr_weighs_rank_against_similarity(total: int, seed: int, weight: float, data: st.DataObject) -> None:
    relevance, count = make([(1, 1, total)], seed), data.draw(st.integers(1, total))
    scores, embeds = relevance.scores, relevance.visual_embeds
    assert scores is not None
    rank = [sum(other < score for other in scores) / (total - 1) for score in scores]
    kept: list[int] = []
    while len(kept) < count:
        left = [i for i in range(total) if i not in kept]
        similar = {i: max((float(np.float32(slow_cosine(embeds[i], embeds[j]))) for j in kept), default=0.0) for i in left}
        kept.append(max(left, key=lambda i: weight * rank[i] - (1 - weight) * similar[i]))
    assert LearnedMMR(weight)(relevance, count).tolist() == sorted(kept)


@given(st.integers(1, 20), st.integers(0, 2**32), st.data())
def test_dpp_of_weight_one_is_learned_while_tokens_are_independent(total: int, seed: int, data: st.DataObject) -> None:
    generator = np.random.default_rng(seed)
    embeds = generator.standard_normal((total, 40)).astype(np.float32)
    relevance = Relevance(embeds, scores=softmax(generator, total))
    count = data.draw(st.integers(1, total))
    np.testing.assert_array_equal(LearnedDPP(weight=1.0)(relevance, count), Learned()(relevance, count))


@pytest.mark.parametrize("selector", [LearnedMMR(), LearnedDPP()])
def test_a_duplicate_makes_room_for_something_else(selector: Selector) -> None:
    embeds = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    relevance = Relevance(embeds, scores=np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert selector(relevance, 2).tolist() == [0, 2]
    assert Learned()(relevance, 2).tolist() == [0, 1]


@pytest.mark.parametrize("selector", [LearnedMMR(), LearnedDPP()])
@pytest.mark.parametrize("factor", [1e-9, 0.5, 1e9])
def test_a_common_factor_of_the_scores_changes_nothing(selector: Selector, factor: float) -> None:
    relevance = make([(1, 10, 10)], 0)
    assert relevance.scores is not None
    scaled = Relevance(relevance.visual_embeds, scores=relevance.scores * np.float32(factor))
    np.testing.assert_array_equal(selector(scaled, 30), selector(relevance, 30))

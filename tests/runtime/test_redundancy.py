"""Visual tokens whose pixels others have already: which they are, and what a request that leaves them out gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from foveate.cli.documents import Encoding as EncodingDocument
from foveate.engines import Environment, LatencyEntry, LatencyPoint, RequestError
from foveate.runtime import Answer, Budget, Pipeline, Request, load
from foveate.runtime.encoding import Encoding, Part
from foveate.runtime.encoding.cost import Estimate, first_worth, spread
from foveate.runtime.encoding.redundancy import find_runs, find_sources
from foveate.runtime.latency import LatencyModel, Plan, Sizes

QUESTION = "What colour is the circle?"
TOKENS = 400
"""Of `page`."""
NONE = "no visual token repeats its neighbours"


@pytest.fixture(scope="module")
def pipe(reference_bundle: Path) -> Iterator[Pipeline]:
    with load(reference_bundle, vision_cache_bytes=0) as pipe:
        yield pipe


def page(lines: int = 8, side: int = 560) -> Image.Image:
    """Black text on white, with margins."""
    made = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(made)
    for number in range(lines):
        draw.text((60, 60 + 40 * number), f"line {number}: the quick brown fox {37 * number}", fill="black", font_size=20)
    return made


def noise(side: int = 560, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def ask(pipe: Pipeline, *images: Image.Image, **options: Any) -> Answer:
    return pipe.generate(Request.ask(QUESTION, images or [page()], max_new_tokens=4, ignore_eos=True, **options))


def blocks() -> st.SearchStrategy[np.ndarray]:
    """Pixels of a few visual tokens, many of them alike."""
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.just(3))
    return shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 2), fill=st.nothing()))


@given(blocks())
def test_equal_pixels_are_all_that_is_lost(cells: np.ndarray) -> None:
    """A picture that is put together from what was encoded is the picture, bit for bit."""
    flat, sources = cells.reshape(-1, 3), find_sources(cells, 0)
    np.testing.assert_array_equal(flat[sources], flat)
    check_sources(sources)
    for token in np.flatnonzero(sources == np.arange(len(flat))):
        assert not any((flat[other] == flat[token]).all() for other in predictors(int(token), cells.shape))


@given(blocks(), st.integers(1, 3))
def test_differences_do_not_add_up(cells: np.ndarray, tolerance: int) -> None:
    flat, sources = cells.reshape(-1, 3).astype(int), find_sources(cells, tolerance)
    assert np.abs(flat[sources] - flat).max() <= tolerance
    check_sources(sources)
    for token in np.flatnonzero(sources == np.arange(len(flat))):
        stand_ins = {sources[other] for other in predictors(int(token), cells.shape)}
        assert all(np.abs(flat[source] - flat[token]).max() > tolerance for source in stand_ins)


def check_sources(sources: np.ndarray) -> None:
    """A source is encoded, and comes before what it stands for."""
    assert sources.dtype == np.int64
    np.testing.assert_array_equal(sources[sources], sources)
    assert (sources <= np.arange(len(sources))).all()


def predictors(token: int, shape: tuple[int, ...]) -> list[int]:
    """By definition: one step earlier, left, above, above left; one token of 3 x 3 has only the first."""
    step, row, column = np.unravel_index(token, shape[:3])
    places = [(step - 1, row, column), (step, row, column - 1), (step, row - 1, column), (step, row - 1, column - 1)]
    places = places[:1] if row % 3 == column % 3 == 1 else places
    return [int(np.ravel_multi_index(place, shape[:3])) for place in places if min(place) >= 0]


def test_a_gradient_is_cut_where_the_difference_is_too_large() -> None:
    """Neighbours differ by 1: compared with each other, the first would stand for all."""
    row = np.arange(10, dtype=np.uint8).reshape(1, 1, 10, 1)
    assert find_sources(row, 2).tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]
    assert find_sources(row, 0).tolist() == list(range(10))


@given(blocks())
def test_the_largest_tolerance_leaves_the_first_and_one_of_nine(cells: np.ndarray) -> None:
    expected = np.zeros(cells.shape[1:3], bool)
    expected[0, 0] = expected[1::3, 1::3] = True
    sources = find_sources(cells, 255)
    assert np.flatnonzero(sources == np.arange(len(sources))).tolist() == np.flatnonzero(expected).tolist()


@given(blocks(), st.data())
def test_runs_say_what_stands_for_what(cells: np.ndarray, data: st.DataObject) -> None:
    sources = find_sources(cells, 0)
    unique = np.flatnonzero(sources == np.arange(len(sources)))
    encoded = np.array(sorted(data.draw(st.sets(st.sampled_from(unique.tolist()), min_size=1))))
    told = np.arange(len(sources))
    for first, count, source in find_runs(sources, encoded):
        assert source in encoded
        told[first : first + count] = source
    np.testing.assert_array_equal(told, np.where(np.isin(sources, encoded), sources, np.arange(len(sources))))


def test_the_tower_sees_what_repeats_no_other(pipe: Pipeline) -> None:
    answer, whole = ask(pipe, redundancy=0), ask(pipe)
    encoding = answer.encoding
    assert 0 < encoding.encoded_tokens < TOKENS // 2
    assert (
        encoding.redundant_tokens == TOKENS - encoding.encoded_tokens == sum(count for _, count, _ in encoding.redundant_runs)
    )
    assert (encoding.glance_tokens, encoding.reason, answer.timings.glance_ms) == (0, "", 0)
    assert answer.prompt_tokens == whole.prompt_tokens - encoding.redundant_tokens
    selection = answer.selection
    assert (selection.num_visual_tokens, selection.selector, selection.reason) == (TOKENS, "redundancy", "")
    assert encoding.told() == f"the tower saw {encoding.encoded_tokens}, {encoding.redundant_tokens} repeat others"


def test_the_picture_from_what_was_encoded(pipe: Pipeline) -> None:
    """What is left out of a page is its margins: white, and each white square is the first."""
    selection = ask(pipe, redundancy=0).selection
    pixels = np.asarray(page()).reshape(20, 28, 20, 28, 3).swapaxes(1, 2).reshape(TOKENS, -1)
    dropped = np.delete(pixels, selection.keep_indices, axis=0)
    assert (dropped == 255).all()
    inked = np.flatnonzero((pixels != 255).any(axis=1))
    assert set(inked) <= set(selection.keep_indices.tolist())


def test_each_token_keeps_its_place(pipe: Pipeline) -> None:
    request = Request.ask(QUESTION, [page()], redundancy=0)
    encoded, whole = pipe.encode(request), pipe.prepare(request).layout
    layout, kept = encoded.prepared.layout, encoded.part.tokens
    np.testing.assert_array_equal(
        layout.position_ids[:, layout.visual_indices], whole.position_ids[:, whole.visual_indices[kept]]
    )
    assert layout.next_position == whole.next_position


@pytest.mark.parametrize("options", [{}, {"keep": 0.25}])
def test_nothing_is_redundant(pipe: Pipeline, options: dict[str, Any]) -> None:
    """Then the answer is that of the whole tower, bit for bit."""
    request = Request.ask(QUESTION, [noise()], redundancy=0, **options)
    encoded, whole = pipe.encode(request), pipe.encode(Request.ask(QUESTION, [noise()]))
    np.testing.assert_array_equal(np.asarray(encoded.visual_embeds), np.asarray(whole.visual_embeds))
    answer, plain = ask(pipe, noise(), redundancy=0, **options), ask(pipe, noise(), **options)
    assert (answer.encoding, answer.tokens) == (Encoding(TOKENS, TOKENS, reason=NONE), plain.tokens)
    np.testing.assert_array_equal(answer.selection.keep_indices, plain.selection.keep_indices)


def test_a_larger_tolerance_leaves_fewer(pipe: Pipeline) -> None:
    shades = np.clip(np.asarray(page()).astype(int) - np.random.default_rng(0).integers(0, 4, (560, 560, 1)), 0, 255)
    grainy = Image.fromarray(shades.astype(np.uint8))
    seen = [ask(pipe, grainy, redundancy=tolerance).encoding.encoded_tokens for tolerance in (0, 3, 255)]
    assert seen == [TOKENS, ask(pipe, redundancy=0).encoding.encoded_tokens, 1 + 7 * 7]


def test_the_budget_counts_over_all(pipe: Pipeline) -> None:
    encoded = ask(pipe, redundancy=0).encoding.encoded_tokens
    fewer, covered = ask(pipe, redundancy=0, keep=0.1), ask(pipe, redundancy=0, keep=0.9)
    assert (len(fewer.selection.keep_indices), fewer.selection.selector) == (TOKENS // 10, "foveated")
    assert len(covered.selection.keep_indices) == encoded
    assert (covered.selection.selector, covered.selection.reason) == ("redundancy", "")
    assert len(ask(pipe, redundancy=0, keep_tokens=30, select="divprune").selection.keep_indices) == 30


def test_a_glance_chooses_among_the_others(pipe: Pipeline) -> None:
    unique = ask(pipe, redundancy=0)
    answer = ask(pipe, redundancy=0, encode=0.125)
    assert (answer.encoding.encoded_tokens, answer.encoding.glance_tokens) == (50, 100)
    assert answer.encoding.redundant_tokens == unique.encoding.redundant_tokens
    assert set(answer.selection.keep_indices) < set(unique.selection.keep_indices)
    assert "after a glance at 100, " in answer.encoding.told()


def test_no_glance_where_few_are_left(pipe: Pipeline) -> None:
    alone, both = ask(pipe, redundancy=0), ask(pipe, redundancy=0, encode=0.5, keep=0.125)
    assert both.encoding == alone.encoding
    assert (len(both.selection.keep_indices), both.selection.selector) == (50, "foveated")


def test_a_glance_where_nothing_is_redundant(pipe: Pipeline) -> None:
    answer = ask(pipe, noise(), redundancy=0, encode=0.25)
    assert answer.encoding == Encoding(100, TOKENS, 100, NONE)


def test_a_picture_too_small_for_a_glance(pipe: Pipeline) -> None:
    answer = ask(pipe, page(3, 280), redundancy=0, encode=0.1)
    assert 10 < answer.encoding.encoded_tokens == 100 - answer.encoding.redundant_tokens < 100
    assert answer.encoding.reason == "a smaller picture would show too little"


def test_several_images(pipe: Pipeline) -> None:
    answer = ask(pipe, noise(280), page(), redundancy=0)
    alone = ask(pipe, redundancy=0).encoding
    assert answer.encoding.encoded_tokens == 100 + alone.encoded_tokens
    shifted = tuple((first + 100, count, source + 100) for first, count, source in alone.redundant_runs)
    assert answer.encoding.redundant_runs == shifted


def test_a_second_question_finds_what_was_computed(reference_bundle: Path) -> None:
    """Such a part hangs on no question, so the cache has it; with a glance it does."""
    with load(reference_bundle) as pipe:
        first = pipe.encode(Request.ask(QUESTION, [page()], redundancy=0))
        before = pipe.vision_cache.stats
        second = pipe.encode(Request.ask("How many circles are there?", [page()], redundancy=0))
        after = pipe.vision_cache.stats
        np.testing.assert_array_equal(np.asarray(first.visual_embeds), np.asarray(second.visual_embeds))
        assert (after.hits - before.hits, after.misses - before.misses, after.entries) == (1, 0, 1)
        auto = ask(pipe, encode="auto", keep=0.1)
        assert auto.encoding == first.encoding
        ask(pipe, encode=0.1)
        assert pipe.vision_cache.stats.entries == 2  # and the glance


def test_auto_takes_equal_pixels_by_itself(pipe: Pipeline) -> None:
    answer = ask(pipe, encode="auto")
    reason = "no share or number of tokens is kept that would say how many are enough"
    assert answer.encoding == replace(ask(pipe, redundancy=0).encoding, reason=reason)


def test_describing_an_answer(pipe: Pipeline) -> None:
    told = ask(pipe, redundancy=0).to_dict()["encoding"]
    document = msgspec.convert(msgspec.json.decode(msgspec.json.encode(told)), EncodingDocument)
    assert sum(run[1] for run in document.redundant_runs) == document.redundant_tokens
    assert ask(pipe, redundancy=0, explain=True).explain().width > 400


@pytest.mark.parametrize(
    ("image", "options", "seen", "reason"),
    [
        # Little is redundant, and a glance pays.
        (noise(), {"keep": 0.25}, "glance", ""),
        # Nothing pays.
        (noise(), {"keep": 0.9}, "all", f"{NONE}; a glance and 360 of 400 visual tokens are hardly less work"),
        (noise(), {}, "all", f"{NONE}; no share or number of tokens is kept"),
        (noise(), {"keep": 1}, "all", f"{NONE}; encode covers all 400 visual tokens"),
        (noise(), {"keep": 0.25, "select": "divprune"}, "all", f"{NONE}; selector 'divprune' looks at visual tokens"),
        # What repeats no other is fewer than are kept, hardly more, and many more.
        (page(), {"keep": 0.5}, "unique", ""),
        (page(), {"keep": 0.25}, "unique", "a glance and 100 of 400 visual tokens are hardly less work"),
        (page(12), {"keep": 0.02}, "glance", ""),
        (page(20), {"keep": 0.25, "select": "divprune"}, "unique", "selector 'divprune' looks at visual tokens"),
        (page(3, 280), {"keep": 0.05}, "unique", "a smaller picture would show too little"),
        (page(20), {"keep": 0.25, "select": "pooling"}, "all", "selector 'pooling' looks at visual tokens"),
    ],
)
def test_auto_takes_what_is_least_work(
    pipe: Pipeline, image: Image.Image, options: dict[str, Any], seen: str, reason: str
) -> None:
    encoding = ask(pipe, image, encode="auto", **options).encoding
    assert encoding.reason.startswith(reason)
    assert bool(encoding.reason) == bool(reason)
    assert bool(encoding.glance_tokens) == (seen == "glance")
    fewest = encoding.visual_tokens - encoding.redundant_tokens
    if seen == "glance":
        assert encoding.encoded_tokens == round(options["keep"] * encoding.visual_tokens) < fewest
    else:
        assert encoding.encoded_tokens == (fewest if seen == "unique" else encoding.visual_tokens)


def test_auto_sees_all_where_little_is_redundant(pipe: Pipeline) -> None:
    image = noise()
    image.paste((255, 255, 255), (0, 0, 112, 28))
    assert ask(pipe, image, redundancy=0).encoding.redundant_tokens == 3
    encoding = ask(pipe, image, encode="auto").encoding
    assert encoding.encoded_tokens == TOKENS
    assert encoding.reason.startswith("the 397 of 400 visual tokens that repeat no others are hardly less work; ")


@pytest.fixture
def measured(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """As if a visual token took 10 ms, a token of the prompt 1 ms, and scoring 5 ms."""
    lines = [
        tuple(LatencyPoint(tokens, ms) for tokens, ms in points)
        for points in (((1, 10.0), (1000, 10_000.0)), ((1, 5.0), (1000, 5.0)), ((1, 1.0), (1000, 1000.0)))
    ]
    model = LatencyModel(LatencyEntry(Environment("a CPU", 2, "b", {}), *lines))
    monkeypatch.setattr(pipe, "latency", model)
    return pipe


def test_time_is_planned_before_the_tower(measured: Pipeline) -> None:
    """All take 4,400 ms and the text. A page has a third of it. A glance takes 1,005 ms, then 11 ms go for each token."""
    whole = ask(measured, noise(), encode="auto", ttft_ms=9000)
    assert whole.encoding == Encoding(TOKENS, TOKENS, reason="all tokens fit into 9000 ms")
    unique = ask(measured, encode="auto", ttft_ms=4000)
    assert unique.encoding == ask(measured, redundancy=0).encoding
    part = ask(measured, noise(), encode="auto", ttft_ms=4000)
    assert part.encoding.glance_tokens == 100
    assert 150 < part.encoding.encoded_tokens == len(part.selection.keep_indices) < 272
    assert 3980 < part.predicted_ttft_ms <= 4000
    fewer = ask(measured, noise(), encode=0.25, ttft_ms=4000)
    assert fewer.encoding == Encoding(100, TOKENS, 100)
    assert fewer.predicted_ttft_ms < part.predicted_ttft_ms


def test_time_that_is_too_little(measured: Pipeline) -> None:
    for encode in ("auto", 0.5):
        with pytest.raises(
            RequestError, match=r"the budget is 500 ms, and with a single visual token, after a glance, .* about 1"
        ):
            ask(measured, noise(), encode=encode, ttft_ms=500)


def test_time_without_a_glance(measured: Pipeline) -> None:
    """What the tower takes of a picture too small for one: 1,000 ms, and 100 for the LLM."""
    answer = ask(measured, noise(280), encode="auto", ttft_ms=1100)
    assert answer.encoding == Encoding(100, 100, reason=f"{NONE}; a smaller picture would show too little")


def test_auto_goes_by_what_was_measured(measured: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the vision graph takes no time, a glance and scores save nothing."""
    assert ask(measured, noise(), encode="auto", keep=0.25).encoding.glance_tokens == 100
    monkeypatch.setattr(LatencyModel, "vision_ms", lambda self, tokens: 0.0)
    assert ask(measured, noise(), encode="auto", keep=0.25).encoding.encoded_tokens == TOKENS


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=3))
def test_the_cheapest_or_what_looks_at_more(costs: list[float]) -> None:
    chosen = first_worth(costs)
    assert costs[chosen] <= min(costs) / 0.9 * (1 + 1e-9)
    assert all(cost > min(costs) / 0.9 * (1 - 1e-9) for cost in costs[:chosen])


def test_frames_are_runs_of_their_own() -> None:
    grids = [(1, 2, 3), (2, 2, 2)]
    assert spread(grids) == (6, 4, 4)
    assert spread(grids, np.array([0, 5, 13])) == (2, 1)
    operations = Estimate().vision_ms
    assert operations(864) == 1
    assert 0.25 > operations(216) > operations(108)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"redundancy": -1}, "redundancy is -1, expected a whole number of at least 0"),
        ({"redundancy": 256}, "redundancy is 256, expected a whole number from 0 to 255"),
        ({"redundancy": 0.5}, "redundancy is 0.5, expected a whole number"),
        ({"redundancy": True}, "redundancy is True"),
        ({"redundancy": 0, "keep": 0.5, "min_retained": 0.9}, "not without redundant ones"),
        ({"redundancy": 0, "keep": 0.1, "select": "pooling"}, "'pooling' got grids of 0 cells for .* Leave out redundancy"),
        ({"redundancy": 0, "encode": 0.1, "select": "divprune"}, "'divprune' looks at visual tokens"),
    ],
)
def test_what_can_not_be_done(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ask(pipe, **options)
    assert {"redundancy", "encode"} & set(caught.value.options)


def test_a_still_scene_is_seen_once(pipe: Pipeline) -> None:
    """Of a video whose frames are all alike, everything after the first step repeats it."""
    frames = [noise(224)] * 7
    answer = pipe.generate(Request.ask(QUESTION, videos=[frames], redundancy=0, max_new_tokens=2))
    assert answer.grids == ((4, 8, 8),)
    assert answer.selection.keep_indices.tolist() == list(range(64))
    assert answer.encoding.redundant_tokens == 192


def test_what_moves_is_seen_again(pipe: Pipeline) -> None:
    """A square in the second frame of the third step alone; both frames of a step have to match."""
    frames = [noise(224) for _ in range(8)]
    frames[5].paste((255, 0, 0), (56, 84, 84, 112))
    request = Request.ask(QUESTION, videos=[frames], redundancy=0, max_new_tokens=2)
    answer, place = pipe.generate(request), 3 * 8 + 2
    assert answer.selection.keep_indices.tolist() == [*range(64), 128 + place, 192 + place]
    part, whole = pipe.encode(request), pipe.prepare(request)
    alone = pipe._encode_part(whole, np.array([128 + place]))
    np.testing.assert_allclose(np.asarray(part.visual_embeds)[64], np.asarray(alone)[0], rtol=1e-4, atol=1e-5)
    assert part.prepared.layout.position_ids[:, part.prepared.layout.visual_indices][0].tolist()[-2:] == [
        whole.layout.position_ids[0, whole.layout.visual_indices[128 + place]],
        whole.layout.position_ids[0, whole.layout.visual_indices[192 + place]],
    ]


def test_visual_tokens_that_were_given_are_all_there(pipe: Pipeline) -> None:
    encoded = pipe.encode(Request.ask(QUESTION, [page()]))
    answer = pipe.generate(Request.ask(QUESTION, [page()], max_new_tokens=2, redundancy=0), encoded)
    assert answer.encoding == Encoding(TOKENS, TOKENS, reason="the visual tokens were given")


GLANCE = ("glance", "glance_stays", "enlarge")


def with_only(pipe: Pipeline, *names: str) -> SimpleNamespace:
    """The processor with no more of what encoding needs."""
    return SimpleNamespace(**{name: getattr(pipe._prepare._processor, name) for name in ("image", "layout", *names)})


@pytest.mark.parametrize("options", [{"redundancy": 0}, {"encode": "auto", "keep": 0.25}, {"redundancy": 0, "encode": 0.25}])
def test_a_family_whose_tower_takes_whole_pictures(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(pipe._prepare, "_processor", with_only(pipe, *GLANCE, "cells"))
    reason = "the vision tower of this family takes whole pictures"
    assert ask(pipe, **options).encoding == Encoding(TOKENS, TOKENS, reason=reason)


def test_a_family_whose_visual_tokens_share_pixels(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may glance, but has no pixels to compare."""
    monkeypatch.setattr(pipe._prepare, "_processor", with_only(pipe, *GLANCE, "part"))
    encoding = ask(pipe, redundancy=0).encoding
    assert encoding == Encoding(TOKENS, TOKENS, reason="the visual tokens of this family are no tiles of pixels")
    assert ask(pipe, redundancy=0, encode=0.25).encoding == Encoding(100, TOKENS, 100, encoding.reason)


def test_no_image(pipe: Pipeline) -> None:
    answer = pipe.generate(Request.ask("Hello", redundancy=0, max_new_tokens=2))
    assert answer.encoding.reason == "the request has no image"


def test_what_was_planned_by_time_is_for_a_budget_of_time() -> None:
    part = Part(np.arange(40), None, "redundancy", 100, predicted_ttft_ms=80.0)
    sizes = Sizes(40, 10, 5.0, True)
    assert part.plan(Budget(ttft_ms=90), sizes, None) == Plan(Budget(), predicted_ttft_ms=80.0)
    assert part.plan(Budget(ratio=0.1), sizes, None) == Plan(Budget(tokens=10))

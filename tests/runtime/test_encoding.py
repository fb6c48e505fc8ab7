"""What the vision tower computes where a request says how much: a glance first, then the visual tokens that matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.engines import RequestError, find_neighbours
from foveate.runtime import Answer, Budget, Pipeline, Request, Selection, load
from foveate.runtime.encoding import Encoding, Part, check_encode, count_tokens
from foveate.runtime.encoding.glance import enlarge
from foveate.runtime.encoding.part import by_visual, only, plan_runs
from foveate.runtime.processors import Foveal
from foveate.runtime.types import Run, Visual

QUESTION = "What colour is the circle?"
TOKENS = 400
"""Of `picture`."""


@pytest.fixture(scope="module")
def pipe(reference_bundle: Path) -> Iterator[Pipeline]:
    with load(reference_bundle, vision_cache_bytes=0) as pipe:
        yield pipe


def picture(side: int = 560, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def ask(pipe: Pipeline, *images: Image.Image, **options: Any) -> Answer:
    return pipe.generate(Request.ask(QUESTION, images or [picture()], max_new_tokens=4, ignore_eos=True, **options))


def test_the_tower_sees_what_the_question_needs(pipe: Pipeline) -> None:
    answer = ask(pipe, encode=0.25)
    assert answer.encoding == Encoding(TOKENS // 4, TOKENS, glance_tokens=100)
    assert len(answer.selection.keep_indices) == TOKENS // 4
    assert answer.selection.num_visual_tokens == len(answer.selection.scores) == TOKENS
    assert answer.timings.glance_ms > 0
    assert answer.prompt_tokens == ask(pipe).prompt_tokens - TOKENS * 3 // 4
    assert answer.grids == ((1, 20, 20),)


def test_the_llm_sees_fewer_than_the_tower(pipe: Pipeline) -> None:
    answer = ask(pipe, encode=0.5, keep=0.25)
    everything = ask(pipe, encode=0.5)
    assert (answer.encoding.encoded_tokens, len(answer.selection.keep_indices)) == (200, 100)
    assert set(answer.selection.keep_indices) < set(everything.selection.keep_indices)
    scored = np.flatnonzero(answer.selection.scores)
    assert set(answer.selection.keep_indices) <= set(scored) <= set(everything.selection.keep_indices)


def test_visual_tokens_of_a_part_that_is_the_whole(pipe: Pipeline) -> None:
    """Nothing in the way from a part to the LLM changes them."""
    prepared = pipe.prepare(Request.ask(QUESTION, [picture()]))
    everything = np.arange(TOKENS)
    np.testing.assert_array_equal(np.asarray(pipe._encode_part(prepared, everything)), np.asarray(pipe.vision(prepared)))
    whole = only(prepared, everything)
    for name in ("input_ids", "position_ids", "visual_indices"):
        np.testing.assert_array_equal(getattr(whole.layout, name), getattr(prepared.layout, name))
    np.testing.assert_array_equal(whole.instruction_indices, prepared.instruction_indices)


def test_each_visual_token_stands_for_its_place(pipe: Pipeline) -> None:
    """Of a tower that sees one corner, tokens are those of that corner: pixels elsewhere change nothing."""
    corner = np.array([row * 20 + column for row in range(10) for column in range(10)])
    one, other = picture(), picture()
    other.paste((0, 0, 0), (280, 0, 560, 560))
    parts = [pipe._encode_part(pipe.prepare(Request.ask(QUESTION, [image])), corner) for image in (one, other)]
    np.testing.assert_array_equal(np.asarray(parts[0]), np.asarray(parts[1]))
    prepared = only(pipe.prepare(Request.ask(QUESTION, [one])), corner)
    whole = pipe.prepare(Request.ask(QUESTION, [one])).layout
    places = whole.visual_indices[corner]
    np.testing.assert_array_equal(
        prepared.layout.position_ids[:, prepared.layout.visual_indices], whole.position_ids[:, places]
    )
    assert prepared.num_text_tokens == len(whole.input_ids) - TOKENS
    assert prepared.layout.next_position == whole.next_position


def test_several_images_share_what_is_computed(pipe: Pipeline) -> None:
    answer = ask(pipe, picture(560, 1), picture(448, 2), encode=0.3)
    total = TOKENS + 256
    assert answer.encoding == Encoding(round(0.3 * total), total, 100 + 64)
    assert len(answer.pictures) == 2


def test_images_with_nothing_that_matters_are_not_run(pipe: Pipeline) -> None:
    prepared = pipe.prepare(Request.ask(QUESTION, [picture(560, 1), picture(448, 2)]))
    runs = pipe._prepare.runs(prepared, np.array([401, 405]))
    (feeds,) = runs.feeds
    assert feeds["patch_positions"].tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [0, 10], [0, 11], [1, 10], [1, 11]]
    assert runs.rows.tolist() == [0, 1]
    assert np.asarray(pipe._encode_part(prepared, np.array([401, 405]))).shape[0] == 2


def test_runs_in_any_order_give_each_token_its_row() -> None:
    """Of two images, the first of which had two tokens already; a run gives odd tokens, another one even ones."""
    visuals = [Visual({}, ((1, 1, 6),), ()), Visual({}, ((1, 1, 4),), ())]

    def part(visual: Visual, tokens: np.ndarray) -> list[Run]:
        halves = [tokens[tokens % 2 == 1], tokens[tokens % 2 == 0]]
        return [Run({"of": np.array([len(half)])}, half) for half in halves if len(half)]

    runs = plan_runs(np.array([1, 2, 3, 5, 6, 7]), visuals, part, [2, 0])
    assert [feeds["of"].tolist() for feeds in runs.feeds] == [[2], [1], [1], [1]]
    assert runs.rows.tolist() == [1, 4, 2, 3, 6, 5]  # rows 0 and 1 were there; 3, 5; 2; 7; 6
    embeds = np.arange(20).reshape(10, 2)
    assert [part.tolist() for part in by_visual(embeds, visuals)] == [embeds[:6].tolist(), embeds[6:].tolist()]


def test_a_batch_of_both_kinds(pipe: Pipeline) -> None:
    requests = [
        Request.ask(QUESTION, [picture()], max_new_tokens=4, ignore_eos=True, encode=encode) for encode in (None, 0.25, "auto")
    ]
    together, alone = pipe.generate_batch(requests), [pipe.generate(request) for request in requests]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert [answer.encoding and answer.encoding.encoded_tokens for answer in together] == [None, 100, TOKENS]


@pytest.mark.parametrize(
    ("side", "options", "reason"),
    [
        (560, {"encode": 1.0}, "encode covers all 400 visual tokens"),
        (560, {"encode": "auto"}, "no share or number of tokens is kept"),
        (560, {"encode": "auto", "mass": 0.5}, "no share or number of tokens is kept"),
        (280, {"encode": 0.25}, "a smaller picture would show too little"),
        (560, {"encode": "auto", "keep": 0.9}, "a glance and 360 of 400 visual tokens are hardly less work"),
    ],
)
def test_the_whole_tower_and_why(pipe: Pipeline, side: int, options: dict[str, Any], reason: str) -> None:
    answer = ask(pipe, picture(side), **options)
    plain = ask(pipe, picture(side), **{name: value for name, value in options.items() if name != "encode"})
    assert reason in answer.encoding.reason
    assert (answer.tokens, answer.encoding.glance_tokens) == (plain.tokens, 0)
    assert answer.encoding.encoded_tokens == answer.encoding.visual_tokens == plain.selection.num_visual_tokens


def test_a_second_question_takes_the_whole_tower_that_is_there(reference_bundle: Path) -> None:
    with load(reference_bundle) as pipe:
        first = ask(pipe, encode="auto", keep=0.25)
        ask(pipe)
        second = ask(pipe, encode="auto", keep=0.25)
        asked_for = ask(pipe, encode=0.25)
    assert first.encoding.encoded_tokens == asked_for.encoding.encoded_tokens == 100
    assert second.encoding == Encoding(TOKENS, TOKENS, reason="all visual tokens were computed for another question")
    assert len(second.selection.keep_indices) == 100


def test_visual_tokens_that_were_given_are_all_there(pipe: Pipeline) -> None:
    """For another budget, or another question about the same image: nothing is computed, and the answer says so."""
    whole = Request.ask(QUESTION, [picture()], max_new_tokens=2)
    asked = Request.ask(QUESTION, [picture()], max_new_tokens=2, encode=0.25)
    encoded = pipe.encode(whole)
    for known in (encoded, pipe.encode(asked, encoded.visual_embeds)):
        answer = pipe.generate(asked, known)
        assert answer.encoding == Encoding(TOKENS, TOKENS, reason="the visual tokens were given")
    assert pipe.generate(whole, encoded).encoding is None


def test_a_family_without_a_glance(trained_bundle: Callable[[str], Path]) -> None:
    with load(trained_bundle("vila1.5-tiny")) as pipe:
        answer = ask(pipe, encode=0.25)
    assert answer.encoding.reason == "the pictures of this family are too small for a glance to pay"
    assert answer.encoding.encoded_tokens == answer.encoding.visual_tokens == 81


def test_no_image(pipe: Pipeline) -> None:
    assert pipe.generate(Request.ask("Hello", encode=0.5, max_new_tokens=2)).encoding.reason == "the request has no image"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encode": 0}, "encode is 0"),
        ({"encode": 1.5}, "encode is 1.5"),
        ({"encode": "half"}, "expected a share above 0, up to 1, or auto"),
        ({"encode": 0.25, "keep": 0.5}, "the budget keeps 200 visual tokens, the tower may compute 100 of 400"),
        ({"encode": 0.25, "keep_tokens": 101}, "the budget keeps 101 visual tokens"),
        ({"encode": 0.25, "select": "divprune"}, "'divprune' looks at visual tokens, which are not there before the tower"),
        ({"encode": 0.25, "ttft_ms": 100}, "the budget is 100 ms, and this bundle has no latencies of this machine"),
        ({"encode": 0.25, "keep": 0.25, "min_retained": 0.9}, "no retention curve"),
    ],
)
def test_what_can_not_be_done_together(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ask(pipe, **options)
    assert "encode" in caught.value.options or not caught.value.options


def test_the_picture_of_the_decision(pipe: Pipeline) -> None:
    """Where the LLM sees all that was computed, the glance has scored it already."""
    answer, explained = ask(pipe, encode=0.25), ask(pipe, encode=0.25, explain=True)
    assert answer.explain().width > 400
    assert explained.selection.selector == answer.selection.selector == "foveated"
    np.testing.assert_array_equal(explained.selection.scores, answer.selection.scores)


def grids() -> st.SearchStrategy[list[tuple[int, int, int]]]:
    return st.lists(st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3)


@given(grids(), st.data())
def test_neighbours_among_those_that_are_there(sizes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    total = sum(frames * rows * columns for frames, rows, columns in sizes)
    present = np.array(sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1))))
    found, everything = find_neighbours(sizes, present), find_neighbours(sizes)
    assert found.shape == (len(present), 9)
    for row, token in zip(found, present, strict=True):
        expected = [
            int(np.flatnonzero(present == other)[0]) if other in present else len(present) for other in everything[token]
        ]
        assert row.tolist() == expected


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_enlarged_scores_are_those_of_the_small_picture(rows: int, columns: int, scale: int) -> None:
    scores = np.random.default_rng(rows * columns).random(rows * columns).astype(np.float32)
    small, large = ((1, rows * factor, columns * factor) for factor in (1, scale))
    enlarged = enlarge(scores, [small], [large])
    assert enlarged.shape == (rows * columns * scale**2,)
    assert scores.min() * 0.99 <= enlarged.min() <= enlarged.max() <= scores.max() * 1.01
    if scale == 1:
        np.testing.assert_allclose(enlarged, scores, rtol=1e-5)


@given(st.integers(1, 5000), st.floats(0.001, 1), st.floats(0.001, 1))
def test_no_more_is_computed_than_was_allowed(total: int, encode: float, keep: float) -> None:
    allowed, kept = (Budget(ratio=share).count(np.empty(total)) for share in (encode, keep))
    if kept > allowed:
        with pytest.raises(RequestError, match="the tower may compute"):
            count_tokens(encode, Budget(ratio=keep), total)
    else:
        assert count_tokens(encode, Budget(ratio=keep), total) == allowed
    assert count_tokens("auto", Budget(ratio=keep), total) == kept


@pytest.mark.parametrize("asked", [Budget(), Budget(ratio=0.3), Budget(ratio=0.3, only_if_faster=True), Budget(mass=0.5)])
def test_a_budget_over_what_was_computed(asked: Budget) -> None:
    part = Part(np.arange(40), np.ones(100, np.float32), "foveated", 100)
    expected = Budget(tokens=30, only_if_faster=asked.only_if_faster) if asked.ratio else asked
    assert part.budget(asked) == expected


def test_why_all_that_was_computed_stayed() -> None:
    part = Part(np.array([2, 5]), np.ones(9, np.float32), "foveated", 9)
    everything = Selection(np.arange(2), 2, "all", "no budget was set")
    lifted = part.lift(everything, "scoring takes longer than it saves")
    assert (lifted.keep_indices.tolist(), lifted.selector) == ([2, 5], "foveated")
    assert lifted.reason == "scoring takes longer than it saves"
    assert part.lift(everything, "").reason == ""


def test_a_note_about_the_question_stays(pipe: Pipeline) -> None:
    answer = pipe.generate(Request.ask("", [picture()], encode=0.25, max_new_tokens=2))
    assert answer.selection.reason.startswith("no user text follows the last image")


def test_what_a_request_may_say() -> None:
    assert [check_encode(value) for value in (None, "auto", np.float32(0.25), 1)] == [None, "auto", 0.25, 1.0]
    for value in (np.ones(2), b"auto", [0.5], True):
        with pytest.raises(RequestError, match="encode is"):
            check_encode(value)


def test_qwen2_vl_is_foveal(pipe: Pipeline) -> None:
    assert isinstance(pipe._prepare._processor, Foveal)

"""Which visual tokens of a clip the tower computes: every other step is glanced at, and each runs with what it has of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.runtime import Answer, Pipeline, Request, load
from foveate.runtime.encoding import Encoding
from foveate.runtime.encoding.motion import motion
from foveate.runtime.picture import Picture
from foveate.runtime.processors.qwen2_vl import Qwen2VLProcessor, glance_shrink
from foveate.runtime.resolution import Resolution
from foveate.runtime.select import top_k
from foveate.runtime.types import Visual

QUESTION = "What colour appears?"
FRAMES, STEPS, STEP_TOKENS = 5, 3, 64
"""Of `clip`: the last step has one frame, twice."""
TOKENS = STEPS * STEP_TOKENS
GLANCE_TOKENS = 2 * STEP_TOKENS // 4
"""Of two steps at half of their sides."""


@pytest.fixture(scope="module")
def pipe(reference_bundle: Path) -> Iterator[Pipeline]:
    with load(reference_bundle, vision_cache_bytes=0) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def processor(pipe: Pipeline) -> Qwen2VLProcessor:
    found = pipe._prepare._processor
    assert isinstance(found, Qwen2VLProcessor)
    return found


def frame(seed: int, side: int = 224) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def clip(side: int = 224) -> list[Image.Image]:
    return [frame(seed, side) for seed in range(FRAMES)]


def request(*images: Image.Image, frames: list[Image.Image] | None = None, **options: Any) -> Request:
    return Request.ask(QUESTION, images, videos=[frames or clip()], max_new_tokens=4, ignore_eos=True, **options)


def ask(pipe: Pipeline, *images: Image.Image, **options: Any) -> Answer:
    return pipe.generate(request(*images, **options))


def seen(pipe: Pipeline, tokens: np.ndarray, frames: list[Image.Image]) -> np.ndarray:
    """What the tower makes of some of a clip's visual tokens alone."""
    return np.asarray(pipe._encode_part(pipe.prepare(request(frames=frames)), tokens))


def test_the_tower_sees_what_the_question_needs(pipe: Pipeline) -> None:
    answer = ask(pipe, encode=0.25)
    assert answer.encoding == Encoding(TOKENS // 4, TOKENS, glance_tokens=GLANCE_TOKENS)
    assert len(answer.selection.keep_indices) == TOKENS // 4
    assert answer.selection.num_visual_tokens == len(answer.selection.scores) == TOKENS
    assert answer.prompt_tokens == ask(pipe).prompt_tokens - TOKENS * 3 // 4
    assert answer.grids == ((STEPS, 8, 8),)
    assert len(answer.pictures) == FRAMES
    assert answer.explain().width > 400


def test_most_of_what_is_computed_is_what_scores_high(pipe: Pipeline) -> None:
    """A quarter of it is spread over the rest, as for an image."""
    selection = ask(pipe, encode=0.25).selection
    fovea = top_k(selection.scores, TOKENS // 4 - TOKENS // 16)
    assert set(fovea) < set(selection.keep_indices)


def test_the_llm_sees_fewer_than_the_tower(pipe: Pipeline) -> None:
    answer, everything = ask(pipe, encode=0.5, keep=0.25), ask(pipe, encode=0.5)
    assert (answer.encoding.encoded_tokens, len(answer.selection.keep_indices)) == (TOKENS // 2, TOKENS // 4)
    assert set(answer.selection.keep_indices) < set(everything.selection.keep_indices)


def test_the_glance_is_every_other_step_smaller(processor: Qwen2VLProcessor) -> None:
    small = processor.glance(processor.video(clip(), range(FRAMES)))
    assert not isinstance(small, str)
    assert (small.kind, small.grids) == ("video", ((2, 4, 4),))
    assert [picture.seconds for picture in small.pictures] == [0, 1, 4]
    assert [picture.image.size for picture in small.pictures] == [(112, 112)] * 3
    assert [picture.tokens[0] for picture in small.pictures] == [0, 0, 16]
    alike = processor.video([picture.image for picture in small.pictures], range(3), Resolution(min_pixels=1))
    for name, array in small.feeds.items():
        np.testing.assert_array_equal(array, alike.feeds[name])


@pytest.mark.parametrize(
    ("frames", "expected"), [(2, [1e-3]), (4, [1e-3] * 2), (5, [1e-3, 1e-2, 0.1]), (7, [1e-3, 1e-2, 0.1, 0.1])]
)
def test_scores_of_steps_between(processor: Qwen2VLProcessor, frames: int, expected: list[float]) -> None:
    whole = processor.video([frame(0)] * frames, range(frames))  # nothing moves
    small = processor.glance(whole)
    assert not isinstance(small, str)
    scores = np.repeat([1e-3, 0.1], 16)[: small.num_tokens]
    enlarged = processor.enlarge(scores, small, whole).reshape(len(expected), STEP_TOKENS)
    np.testing.assert_allclose(enlarged, np.repeat(expected, STEP_TOKENS).reshape(enlarged.shape), rtol=1e-5)


@pytest.mark.parametrize("steps", [[0, 1, 2], [0, 2], [1]])
def test_visual_tokens_of_whole_steps(pipe: Pipeline, steps: list[int]) -> None:
    """Attention stays within a step, so steps alone give what they give among the others."""
    tokens = np.concatenate([np.arange(STEP_TOKENS) + step * STEP_TOKENS for step in steps])
    prepared = pipe.prepare(request())
    np.testing.assert_allclose(seen(pipe, tokens, clip()), np.asarray(pipe.vision(prepared))[tokens], rtol=1e-4, atol=1e-5)


def test_steps_with_nothing_that_matters_are_not_run(processor: Qwen2VLProcessor) -> None:
    whole = processor.video(clip(), range(FRAMES))
    runs = processor.part(whole, np.array([3, 7, 130]))
    assert [run.feeds["pixel_values"].shape[:2] for run in runs] == [(1, 8), (1, 4)]
    values, positions = whole.feeds["pixel_values"], whole.feeds["patch_positions"]
    np.testing.assert_array_equal(runs[1].feeds["pixel_values"][0], values[2, 8:12])  # token 2 of step 2
    np.testing.assert_array_equal(runs[1].feeds["patch_positions"], positions[8:12])


def test_pixels_of_what_was_not_chosen_change_nothing(pipe: Pipeline) -> None:
    """Neither those of other steps, nor those of other places in a step."""
    left = np.array([step * STEP_TOKENS + row * 8 + column for step in (0, 2) for row in range(8) for column in range(4)])
    other = clip()
    other[2] = other[3] = frame(9)
    for picture in other:
        picture.paste((0, 0, 0), (112, 0, 224, 224))
    np.testing.assert_array_equal(seen(pipe, left, clip()), seen(pipe, left, other))


def test_an_image_beside_a_clip(pipe: Pipeline) -> None:
    answer = ask(pipe, frame(7, 560), encode=0.3)
    total = 400 + TOKENS
    assert answer.encoding == Encoding(round(0.3 * total), total, 100 + GLANCE_TOKENS)
    assert len(answer.pictures) == 1 + FRAMES


def test_auto_takes_the_whole_tower_where_it_is_there(reference_bundle: Path) -> None:
    with load(reference_bundle) as pipe:
        first = ask(pipe, encode="auto", keep=0.25)
        ask(pipe)
        second = ask(pipe, encode="auto", keep=0.25)
    assert first.encoding.encoded_tokens == len(second.selection.keep_indices) == TOKENS // 4
    assert second.encoding == Encoding(TOKENS, TOKENS, reason="all visual tokens were computed for another question")


def test_steps_too_small_for_a_glance(pipe: Pipeline) -> None:
    answer = ask(pipe, frames=clip(196), encode=0.25, min_pixels=1)
    assert answer.encoding.reason == "a smaller picture would show too little"
    assert answer.encoding.encoded_tokens == answer.encoding.visual_tokens == STEPS * 49


@pytest.mark.parametrize(
    ("kind", "tokens", "shrink"),
    [("video", 63, None), ("video", 64, 2), ("video", 511, 2), ("video", 512, 3), ("image", 149, None), ("image", 150, 2)],
)
def test_how_small_a_glance_may_be(kind: Any, tokens: int, shrink: int | None) -> None:
    assert glance_shrink(tokens, kind) == shrink


def test_a_clip_is_still_a_visual_of_frames(processor: Qwen2VLProcessor) -> None:
    whole: Visual = processor.video(clip(), range(FRAMES))
    assert [picture.tokens[0] for picture in whole.pictures] == [0, 0, 64, 64, 128]


def still(frames: int) -> list[Picture]:
    """Black frames of 2 x 3 visual tokens, two to a step."""
    return [Picture(Image.new("RGB", (84, 56)), (2, 3), np.arange(6) + number // 2 * 6) for number in range(frames)]


def test_nothing_moves() -> None:
    np.testing.assert_array_equal(motion(still(5)), np.zeros(18))
    np.testing.assert_array_equal(motion(still(1)), np.zeros(6))


@pytest.mark.parametrize(
    ("frame", "steps"),
    [(0, [0]), (1, [0, 1]), (2, [0, 1]), (3, [1, 2]), (4, [1, 2])],
)
def test_what_comes_and_goes_is_seen_before_and_behind(frame: int, steps: list[int]) -> None:
    """In the one frame that shows it, and in those beside it."""
    pictures = still(5)
    pictures[frame].image.paste((255, 255, 255), (28, 28, 56, 56))
    pictures[frame].image.paste((90, 90, 90), (0, 0, 28, 14))
    expected = np.zeros((3, 6), np.float32)
    expected[steps, 4] = 1
    expected[steps, 0] = 90 / 255 / 2
    np.testing.assert_allclose(motion(pictures).reshape(3, 6), expected, rtol=1e-6)


def test_what_moves_is_worth_more(processor: Qwen2VLProcessor) -> None:
    frames = [Image.new("RGB", (224, 224)) for _ in range(6)]
    frames[3].paste((255, 0, 0), (112, 0, 224, 112))
    whole = processor.video(frames, range(6))
    small = processor.glance(whole)
    assert not isinstance(small, str)
    expected = np.full((3, 8, 8), 0.01)
    expected[1:, :4, 4:] = 0.1
    enlarged = processor.enlarge(np.full(small.num_tokens, 0.01, np.float32), small, whole)
    np.testing.assert_allclose(enlarged.reshape(3, 8, 8), expected, rtol=1e-5)

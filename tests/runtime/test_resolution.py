"""Limits of a request on what the model sees: what is shrunk, that the answer says so, and what is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveate.engines import RequestError
from foveate.engines.format.processors import read_constants
from foveate.runtime import Pipeline, Request, Visual
from foveate.runtime.processors import Processor, open_processor
from foveate.runtime.processors.qwen2_vl import Qwen2VLProcessor
from foveate.runtime.resolution import Resized, Resolution, describe
from tests.runtime.clips import encode, grey

COMMON = {"patch_size": 14, "image_mean": [0.5, 0.45, 0.5], "image_std": [0.5, 0.5, 0.52], "rescale_factor": 1 / 255}
PINPOINTS = [[72 * rows, 72 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
SQUARES: dict[str, dict[str, Any]] = {
    "llava": {**COMMON, "image_size": 56, "image_token_id": 5},
    "llava_llama": {**COMMON, "image_size": 72, "merge_size": 2, "image_token_id": 5, "frame_separator_ids": [1]},
    "llava_onevision": {
        **COMMON,
        "image_size": 72,
        "image_grid_pinpoints": PINPOINTS,
        "max_crops": 9,
        "image_token_id": 5,
        "video_token_id": 6,
    },
}
FEWEST = {"llava": 16, "llava_llama": 9, "llava_onevision": 26}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(family: str, constants: dict[str, Any]) -> Processor:
    return open_processor(family, read_constants(family, constants))


@pytest.fixture(scope="module")
def onevision() -> Processor:
    return opened("llava_onevision", SQUARES["llava_onevision"])


sides = st.integers(1, 500)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(1, 60))
@example(width=98, height=463, tokens=51)  # its usual size has as many tokens as that, and a few pixels more than they tile
def test_an_image_has_no_more_tokens_than_asked(processor: Qwen2VLProcessor, width: int, height: int, tokens: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    usual = processor.image(picture(width, height))
    visual = processor.image(picture(width, height), resolution=Resolution(tokens))
    assert visual.num_tokens <= tokens
    assert visual.feeds["pixel_values"].shape[1] == 4 * visual.num_tokens
    if usual.num_tokens <= tokens:
        np.testing.assert_array_equal(visual.feeds["pixel_values"], usual.feeds["pixel_values"])
        assert visual.resized is None
    else:
        assert visual.resized is not None
        assert (visual.resized.visual_tokens, visual.resized.usual_visual_tokens) == (visual.num_tokens, usual.num_tokens)
        assert visual.resized.by == ("max_visual_tokens",)
        assert visual.resized.size == visual.pictures[0].image.size


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), sides, sides, st.integers(1, 60))
def test_a_video_has_no_more_tokens_than_asked(
    processor: Qwen2VLProcessor, count: int, width: int, height: int, tokens: int
) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    frames = [picture(width, height)] * count
    call = lambda: processor.video(iter(frames), range(count), Resolution(tokens))  # noqa: E731
    if tokens < (count + 1) // 2:
        with pytest.raises(RequestError, match=r"max_visual_tokens is .* but a video of .* frames has .* Lower max_frames"):
            call()
    else:
        assert call().num_tokens <= tokens


@settings(max_examples=30, deadline=None)
@given(sides, sides, st.integers(28 * 28, 100_000), st.integers(0, 400_000))
def test_pixels_of_the_request_are_those_of_transformers(
    processor: Qwen2VLProcessor, constants: dict[str, Any], width: int, height: int, fewest: int, more: int
) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    expected = Qwen2VLImageProcessorPil(**{name: value for name, value in constants.items() if not name.endswith("_id")})
    size = {"shortest_edge": fewest, "longest_edge": fewest + more}
    pixels = expected(picture(width, height), size=size, return_tensors="np")["pixel_values"]
    visual = processor.image(picture(width, height), resolution=Resolution(None, fewest, fewest + more))
    np.testing.assert_array_equal(visual.feeds["pixel_values"][0], pixels)


@pytest.mark.parametrize("tokens", [26, 60, 75, 100, 200, 1000])
@pytest.mark.parametrize("size", [(150, 90), (60, 300), (216, 216), (40, 30)])
def test_a_smaller_canvas_is_that_of_transformers(onevision: Processor, tokens: int, size: tuple[int, int]) -> None:
    """transformers' processor with the pinpoints alone that make few enough tokens."""
    image, usual = picture(*size), onevision.image(picture(*size))
    visual = onevision.image(image, resolution=Resolution(tokens))
    assert visual.num_tokens <= tokens
    assert (visual.resized is None) == (visual.num_tokens == usual.num_tokens)
    crops = visual.feeds["pixel_values"].shape[0]
    if crops == 1:  # the form of several images
        np.testing.assert_array_equal(visual.feeds["pixel_values"], onevision.image(image, alone=False).feeds["pixel_values"])
        return
    fitting = [one for one in PINPOINTS if tokens_on(one, size) <= tokens]
    values = {name: SQUARES["llava_onevision"][name] for name in ("image_mean", "image_std", "rescale_factor")}
    reference = LlavaOnevisionImageProcessorPil(size={"height": 72, "width": 72}, image_grid_pinpoints=fitting, **values)
    assert np.asarray(reference(image, return_tensors="np")["pixel_values"])[0].shape[0] == crops


def tokens_on(pinpoint: list[int], size: tuple[int, int]) -> int:
    alone = opened("llava_onevision", {**SQUARES["llava_onevision"], "image_grid_pinpoints": [pinpoint]})
    return alone.image(picture(*size)).num_tokens


@pytest.mark.parametrize("family", SQUARES)
def test_fixed_sizes_are_refused_by_name(family: str) -> None:
    processor = opened(family, SQUARES[family])
    fewest = FEWEST[family]
    assert processor.image(picture(60, 40), alone=False, resolution=Resolution(fewest)).num_tokens == fewest
    with pytest.raises(
        RequestError, match=rf"max_visual_tokens is {fewest - 1}, but an image has {fewest} visual tokens"
    ) as one:
        processor.image(picture(60, 40), resolution=Resolution(fewest - 1))
    assert one.value.options == ("max_visual_tokens",)
    for name in ("min_pixels", "max_pixels"):
        with pytest.raises(RequestError, match=f"{name} is 5000, but .* resizes to sizes of its own. Leave it out"):
            processor.image(picture(60, 40), resolution=Resolution(**{name: 5000}))


@pytest.mark.parametrize("family", ["llava_llama", "llava_onevision"])
def test_frames_of_fixed_sizes_are_refused_by_name(family: str) -> None:
    processor = opened(family, SQUARES[family])
    frames = [picture(60, 40)] * 3
    tokens = processor.video(frames, range(3)).num_tokens
    assert processor.video(iter(frames), range(3), Resolution(tokens)).num_tokens == tokens
    with pytest.raises(RequestError, match=r"but a video of 3 frames has .* Lower max_frames"):
        processor.video(frames, range(3), Resolution(tokens - 1))


@pytest.mark.parametrize("name", ["max_visual_tokens", "min_pixels", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True])
def test_unusable_limits(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"{name} is .*, expected a whole number of at least 1"):
        Request.ask("What?", **{name: value})


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels is 10 and max_pixels 9"),
        ({"max_pixels": 1000}, "min_pixels is .* and max_pixels 1000, .* Give both"),
        ({"min_pixels": 50_000_000, "max_pixels": 60_000_000}, "at most 12845056"),
    ],
)
def test_limits_that_contradict_each_other(processor: Qwen2VLProcessor, limits: dict[str, int], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        processor.image(picture(60, 40), resolution=Resolution(**limits))


def test_one_line_says_what_was_resized() -> None:
    one = Resized((56, 28), (112, 56), 2, 8, ("max_visual_tokens", "max_pixels"))
    assert describe([None]) == ""
    assert describe([None, one]) == (
        "visual 2 seen at 56 x 28 in place of 112 x 56 pixels (2 in place of 8 visual tokens) by max_visual_tokens and "
        "max_pixels"
    )


def test_the_answer_says_what_was_shrunk(pipe: Pipeline) -> None:
    request = Request.ask("What?", [picture(300, 200), picture(28, 28)], max_visual_tokens=70, max_new_tokens=2)
    answer = pipe.generate(request)
    first, second = answer.resized
    assert first is not None
    assert second is None
    assert first.visual_tokens <= 70 < first.usual_visual_tokens
    assert math.prod(answer.grids[0]) == first.visual_tokens
    assert answer.to_dict()["resized"] == [first.to_dict(), None]
    assert pipe.generate(Request.ask("What?", [picture(28, 28)], max_new_tokens=2)).resized == (None,)


def test_frames_are_let_go_one_by_one(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two frames of a file are in memory in their own size."""
    import foveate.runtime.video as module

    alive: list[int] = []
    original: Callable[..., Any] = module._decode

    def counted(*arguments: Any) -> Any:
        for frame in original(*arguments):
            alive.append(1)
            yield frame

    seen: list[int] = []
    resize = Qwen2VLProcessor._resize

    def watched(self: Qwen2VLProcessor, *arguments: Any) -> Any:
        seen.append(len(alive))
        return resize(self, *arguments)

    monkeypatch.setattr(module, "_decode", counted)
    monkeypatch.setattr(Qwen2VLProcessor, "_resize", watched)
    clip = encode([grey(number) for number in range(20)])
    pipe.prepare(Request.ask("What?", videos=clip))
    assert seen == [1, 2, 3, 4]  # each is made small before the next is decoded


def visual_of(pipe: Pipeline, **options: Any) -> Visual:
    (visual,) = pipe.prepare(Request.ask("What?", **options)).visuals
    return visual


def test_the_request_may_name_another_rule(pipe: Pipeline) -> None:
    clip = encode([grey(number) for number in range(40)])
    seconds = [picture.seconds for picture in visual_of(pipe, videos=clip).pictures]
    assert seconds == pytest.approx(np.rint(np.linspace(0, 39, 8)) / 10)  # 4 s at 2 frames a second
    by_interval = visual_of(pipe, videos=clip, frame_rule="interval", fps=1).pictures
    assert [picture.seconds for picture in by_interval] == pytest.approx([0, 1, 2, 3])
    with pytest.raises(RequestError, match="frame_rule is 'odd', expected one of interval, uniform, qwen-vl-utils"):
        Request.ask("What?", videos=clip, frame_rule="odd")


def test_frames_given_one_by_one_are_seen_as_before(pipe: Pipeline) -> None:
    pictures = visual_of(pipe, videos=[[grey(number) for number in range(7)]]).pictures
    assert [picture.seconds for picture in pictures] == [0, 1, 2, 3, 4, 5, 6]

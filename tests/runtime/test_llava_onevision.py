"""LLaVA-OneVision's processor and pipeline against transformers: pixels, packed features, tokens."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2TokenizerFast
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate.engines import BundleError, RequestError, SessionOptions
from foveate.engines.format.processors import read_constants
from foveate.runtime import Budget, Pipeline, Request, Visual, load
from foveate.runtime.encoding.part import plan_runs
from foveate.runtime.processors import open_processor
from foveate.runtime.processors.interpolate import bilinear, single
from foveate.runtime.processors.llava_onevision import LlavaOnevisionProcessor
from tests.generation_cases import GENERATION_CASES, follow
from tests.tiny_llava_onevision import GRID_SIZE, IMAGE_SIZE, PATCH_SIZE, save_tiny

NEW_TOKENS = 6
QUESTION = "What colour is the circle on the left?"
POOLED_SIZE = 3
sides = st.integers(1, 500)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llava_onevision") / "checkpoint", seed=3)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LlavaOnevisionForConditionalGeneration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        return LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> Pipeline:
    exporter = pytest.importorskip("foveate.exporter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own; the exporter's tests look at them
        result = exporter.export(checkpoint, checkpoint.parent / "tiny.bundle", exporter.ExportOptions(check=False))
    return load(result.bundle, options=SessionOptions(threads=1))


@pytest.fixture(scope="module")
def constants(pipe: Pipeline) -> dict[str, Any]:
    return dict(pipe.manifest.processor)


def opened(constants: dict[str, Any]) -> LlavaOnevisionProcessor:
    processor = open_processor("llava_onevision", read_constants("llava_onevision", constants))
    assert isinstance(processor, LlavaOnevisionProcessor)
    return processor


@pytest.fixture(scope="module")
def processor(constants: dict[str, Any]) -> LlavaOnevisionProcessor:
    return opened(constants)


@pytest.fixture(scope="module")
def images(checkpoint: Path) -> LlavaOnevisionImageProcessorPil:
    return LlavaOnevisionImageProcessorPil.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def frames_processor(checkpoint: Path) -> SiglipImageProcessorPil:
    """transformers' video processor needs torchvision; this does the same with PIL: resize, rescale, normalise."""
    values = json.loads((checkpoint / "preprocessor_config.json").read_text())
    names = ("size", "image_mean", "image_std", "resample", "rescale_factor")
    return SiglipImageProcessorPil(**{name: values[name] for name in names})


def unfold(crops: np.ndarray) -> np.ndarray:
    """`[crops, 3, size, size]` to `[crops, patches, 3 * patch * patch]`, as the tower's convolution sees them."""
    seen = torch.from_numpy(np.asarray(crops))[:, :, : GRID_SIZE * PATCH_SIZE, : GRID_SIZE * PATCH_SIZE]
    return torch.nn.functional.unfold(seen, PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2).numpy()


@torch.no_grad()
def pack(model: LlavaOnevisionForConditionalGeneration, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vision graph, spelt out with transformers' modules."""
    patches = torch.from_numpy(feeds["pixel_values"]).transpose(1, 2)
    crops = torch.nn.functional.fold(patches, GRID_SIZE * PATCH_SIZE, PATCH_SIZE, stride=PATCH_SIZE)
    hidden = model.model.vision_tower(crops, output_hidden_states=True).hidden_states[-1]
    rows = torch.cat([model.model.multi_modal_projector(hidden).flatten(0, 1), model.model.image_newline[None]]).numpy()
    return (rows[feeds["gather_indices"]] * feeds["gather_weights"][..., None]).sum(axis=1)


@torch.no_grad()
def image_features(model: LlavaOnevisionForConditionalGeneration, pixels: Mapping[str, Any]) -> list[np.ndarray]:
    inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in pixels.items()}
    return [features.numpy() for features in model.get_image_features(**inputs).pooler_output]


@settings(max_examples=40)
@given(sides, sides, st.integers(0, 2**32 - 1))
@example(1, 500, 0)
@example(500, 1, 0)
@example(216, 216, 0)
@example(72, 72, 0)
def test_an_image_alone_is_that_of_transformers(
    processor: LlavaOnevisionProcessor,
    images: LlavaOnevisionImageProcessorPil,
    model: LlavaOnevisionForConditionalGeneration,
    width: int,
    height: int,
    seed: int,
) -> None:
    image = picture(width, height, seed)
    visual = processor.image(image)
    expected = images([image], return_tensors="np")
    feeds = visual.feeds
    np.testing.assert_array_equal(feeds["pixel_values"], unfold(expected["pixel_values"][0]))
    (features,) = image_features(model, expected)
    np.testing.assert_allclose(pack(model, feeds), features, atol=2e-5)
    assert visual.num_tokens == len(features)
    dtypes = [feeds[name].dtype for name in ("pixel_values", "gather_indices", "gather_weights")]
    assert dtypes == [np.float32, np.int64, np.float32]
    shape = processor.vision_shape(width, height)
    assert (shape.frames, shape.patches, shape.visual_tokens) == (*feeds["pixel_values"].shape[:2], len(features))
    check_pictures(visual)


def check_pictures(visual: Visual) -> None:
    """Tokens of a picture are single features of the grid, never newlines, in the order of rows."""
    newline = visual.feeds["pixel_values"].shape[0] * GRID_SIZE**2
    is_newline = (visual.feeds["gather_indices"][:, 0] == newline) & (visual.feeds["gather_weights"][:, 0] == 1)
    for shown in visual.pictures:
        assert len(shown.tokens) == shown.grid[0] * shown.grid[1] > 0
        assert (np.diff(shown.tokens) > 0).all()
        assert not is_newline[shown.tokens].any()
        assert shown.tokens[-1] < visual.num_tokens
    newlines = np.flatnonzero(is_newline)
    tiled = {number for shown in visual.pictures for number in shown.tokens.tolist()}
    thumbnail = set(range(GRID_SIZE**2))
    assert tiled | thumbnail | set(newlines.tolist()) == set(range(visual.num_tokens)) or visual.kind == "video"


@settings(max_examples=15)
@given(st.lists(st.tuples(sides, sides), min_size=2, max_size=3), st.integers(0, 2**32 - 1))
def test_several_images_are_those_of_transformers(
    processor: LlavaOnevisionProcessor,
    images: LlavaOnevisionImageProcessorPil,
    model: LlavaOnevisionForConditionalGeneration,
    sizes: list[tuple[int, int]],
    seed: int,
) -> None:
    pictures = [picture(width, height, seed + number) for number, (width, height) in enumerate(sizes)]
    visuals = [processor.image(image, alone=False) for image in pictures]
    expected = images([pictures], return_tensors="np")
    for visual, pixels, features in zip(visuals, expected["pixel_values"], image_features(model, expected), strict=True):
        np.testing.assert_array_equal(visual.feeds["pixel_values"], unfold(pixels))
        np.testing.assert_allclose(pack(model, visual.feeds), features, atol=2e-5)
        assert visual.grids == ((1, GRID_SIZE, GRID_SIZE), (1, 1, 1))
        check_pictures(visual)


@settings(max_examples=15)
@given(st.integers(1, 5), sides, sides, st.integers(0, 2**32 - 1))
def test_a_video_is_that_of_transformers(
    processor: LlavaOnevisionProcessor,
    frames_processor: SiglipImageProcessorPil,
    model: LlavaOnevisionForConditionalGeneration,
    count: int,
    width: int,
    height: int,
    seed: int,
) -> None:
    frames = [picture(width, height, seed + number) for number in range(count)]
    seconds = [number / 2 for number in range(count)]
    visual = processor.video(frames, seconds)
    pixels = frames_processor(frames, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(visual.feeds["pixel_values"], unfold(pixels))
    with torch.no_grad():
        features = model.model.get_video_features(torch.from_numpy(pixels)[None]).pooler_output[0].numpy()
    np.testing.assert_allclose(pack(model, visual.feeds), features, atol=2e-5)
    assert (visual.kind, visual.grids) == ("video", ((count, POOLED_SIZE, POOLED_SIZE), (1, 1, 1)))
    assert [shown.seconds for shown in visual.pictures] == seconds
    tokens = np.concatenate([shown.tokens for shown in visual.pictures])
    np.testing.assert_array_equal(tokens, np.arange(visual.num_tokens - 1))


@settings(max_examples=60)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
@example((27, 27), (14, 14))
def test_bilinear_is_that_of_torch(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    indices, weights = bilinear(np.arange(values.size).reshape(size), *new_size)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], new_size, mode="bilinear")[0, 0]
    np.testing.assert_allclose((values.ravel()[indices] * weights).sum(axis=1), expected.flatten(), atol=5e-7)
    assert (indices.dtype, weights.dtype) == (np.int64, np.float32)


def test_single_taps_are_the_cells() -> None:
    indices, weights = single(np.array([[3, 1]]))
    assert indices.tolist() == [[3] * 4, [1] * 4]
    assert weights.tolist() == [[1, 0, 0, 0]] * 2


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_published_canvases_give_the_token_counts_of_transformers(constants: dict[str, Any], width: int, height: int) -> None:
    from transformers import LlavaOnevisionProcessor as Expected

    pinpoints = LlavaOnevisionImageProcessorPil().image_grid_pinpoints
    published = {**constants, "image_size": 384, "image_grid_pinpoints": pinpoints, "max_crops": 9}
    expected = Expected.__new__(Expected)
    expected.image_processor = LlavaOnevisionImageProcessorPil()
    expected.num_image_tokens, expected.vision_aspect_ratio = 729, "anyres_max_9"
    processor = opened(published)
    shape = processor.vision_shape(width, height)
    assert shape.visual_tokens == expected._get_number_of_features(height, width, 384, 384)
    assert shape.patches == 729
    if max(width, height) <= 50 * min(width, height):
        assert processor.vision_shape_of_tokens(shape.visual_tokens).frames >= shape.frames


def test_shapes_of_visual_tokens_hold_images_and_videos(processor: LlavaOnevisionProcessor) -> None:
    tokens = [processor.vision_shape_of_tokens(count) for count in (1, 9, 10, 28)]
    assert [shape.frames for shape in tokens] == [1, 1, 2, 4]
    assert [shape.patches for shape in tokens] == [1, *[GRID_SIZE**2] * 3]  # a single token is a part of a crop
    video = processor.video([picture(20, 30)] * 3, [0.0, 0.5, 1.0])
    assert processor.vision_shape_of_tokens(video.num_tokens).frames >= 3


def sums(feeds: Mapping[str, np.ndarray], newline: float = 9.0) -> np.ndarray:
    """The vision graph with a number of each patch for its features."""
    rows = np.append(feeds["pixel_values"][:, :, 0], newline)
    return np.asarray((rows[feeds["gather_indices"]] * feeds["gather_weights"]).sum(axis=1))


@settings(max_examples=30)
@given(st.integers(60, 500), st.integers(60, 500), st.data())
@example(216, 216, None)
def test_runs_of_crops_give_the_same_sums(processor: LlavaOnevisionProcessor, width: int, height: int, data: Any) -> None:
    visual = processor.image(picture(width, height))
    places = st.sets(st.integers(0, visual.num_tokens - 1), min_size=1)
    tokens = np.arange(visual.num_tokens) if data is None else np.array(sorted(data.draw(places)))
    runs, patches = processor.part(visual, tokens), GRID_SIZE**2
    assert np.sort(np.concatenate([run.tokens for run in runs])).tolist() == tokens.tolist()
    used = [np.unique(run.feeds["gather_indices"][run.feeds["gather_weights"] > 0]) for run in runs]
    newlines = [run.feeds["patch_indices"].size for run in runs]
    assert [set(range(last)) - set(rows.tolist()) for last, rows in zip(newlines, used, strict=True)][1:] == [set()] * len(
        runs[1:]
    )
    whole = sums(visual.feeds)
    for run in runs:
        np.testing.assert_allclose(run.feeds["gather_weights"].sum(axis=1), 1, atol=1e-6)
        taps = np.where(visual.feeds["gather_weights"] > 0, visual.feeds["gather_indices"], -1)[run.tokens]
        at_border = np.array([len({tap // patches for tap in own if tap >= 0}) > 1 for own in taps.tolist()])
        np.testing.assert_allclose(sums(run.feeds)[~at_border], whole[run.tokens][~at_border], atol=1e-5)
        values = np.append(visual.feeds["pixel_values"][:, :, 0], 9.0)[taps]
        assert (sums(run.feeds) <= values.max(axis=1, where=taps >= 0, initial=-9) + 1e-5).all()
        assert (sums(run.feeds) >= values.min(axis=1, where=taps >= 0, initial=9) - 1e-5).all()


def test_a_part_of_everything_is_the_whole(pipe: Pipeline) -> None:
    """A canvas of 2 x 2 crops without padding: each crop is a run of its own, and its tokens go back to their places."""
    prepared = pipe.prepare(Request.ask(QUESTION, [picture(144, 144)]))
    whole = np.asarray(pipe.vision(prepared))
    assert len(prepared.visuals[0].feeds["pixel_values"]) == 5
    np.testing.assert_allclose(pipe._encode_part(prepared, np.arange(len(whole))), whole, atol=1e-5)


def test_the_first_crop_is_a_glance_and_is_not_computed_twice(pipe: Pipeline, processor: LlavaOnevisionProcessor) -> None:
    request = Request.ask(QUESTION, [picture(144, 144)])
    prepared, patches = pipe.prepare(request), GRID_SIZE**2
    small = pipe._prepare.glance(request, prepared)
    assert not isinstance(small, str)
    seen, whole = pipe.vision(small), pipe.vision(prepared)
    np.testing.assert_allclose(seen, whole[:patches], atol=1e-5)
    tokens = np.array([3, 4, 20, 30, 31, 32, 33, 34])
    runs = plan_runs(tokens, prepared.visuals, processor.part, [patches])
    assert [feeds["patch_indices"].tolist() for feeds in runs.feeds] == [[[0, 1, 2, 3, 4]]]  # the second row of the first crop
    assert runs.rows.tolist() == [3, 4, 20, 25, 26, 27, 28, 29]
    got = pipe._encode_part(prepared, tokens, (seen,))
    np.testing.assert_array_equal(np.asarray(got)[:3], np.asarray(seen)[tokens[:3]])
    only_seen = pipe._encode_part(prepared, tokens[:3], (seen,))
    np.testing.assert_array_equal(only_seen, np.asarray(seen)[tokens[:3]])


def test_newlines_alone_need_no_crop(pipe: Pipeline) -> None:
    prepared = pipe.prepare(Request.ask(QUESTION, [picture(144, 144)]))
    newlines = GRID_SIZE**2 + 10 + 11 * np.arange(3)
    got, whole = pipe._encode_part(prepared, newlines), np.asarray(pipe.vision(prepared))
    np.testing.assert_allclose(got, whole[newlines], atol=1e-6)


def test_scores_of_the_first_crop_lie_over_the_whole_image(processor: LlavaOnevisionProcessor) -> None:
    visual = processor.image(picture(144, 144))
    small = processor.glance(visual)
    assert not isinstance(small, str)
    scores = np.full((GRID_SIZE, GRID_SIZE), 0.01, np.float32)
    scores[1, 3] = 0.5
    large = processor.enlarge(scores.ravel(), small, visual)
    np.testing.assert_array_equal(large[: GRID_SIZE**2], scores.ravel())
    grid = large[GRID_SIZE**2 :].reshape(10, 11)
    assert np.unravel_index(grid[:, :-1].argmax(), (10, 10)) in [(2, 6), (2, 7), (3, 6), (3, 7)]
    np.testing.assert_allclose(grid[:, -1], grid[:, :-1].mean(axis=1))


@pytest.mark.parametrize("size", [(144, 144), (500, 400), (300, 100), (72, 500)])
def test_the_tower_sees_what_the_question_needs(pipe: Pipeline, size: tuple[int, int]) -> None:
    answer = pipe.generate(Request.ask(QUESTION, [picture(*size)], encode=0.5, keep=0.25, max_new_tokens=2))
    total = answer.selection.num_visual_tokens
    assert (answer.encoding.encoded_tokens, answer.encoding.visual_tokens) == (Budget(ratio=0.5).count(np.empty(total)), total)
    assert (answer.encoding.glance_tokens, answer.encoding.reason) == (GRID_SIZE**2, "")
    assert len(answer.selection.keep_indices) == Budget(ratio=0.25).count(np.empty(total))


@pytest.mark.parametrize(("images", "frames"), [(2, 0), (0, 3)])
def test_what_is_one_crop_is_seen_whole(pipe: Pipeline, images: int, frames: int) -> None:
    pictures, clip = [picture(90, 90, seed) for seed in range(images)], [picture(90, 90, seed) for seed in range(frames)]
    request = Request.ask(QUESTION, pictures, videos=[clip] if clip else (), encode=0.5, max_new_tokens=2)
    answer = pipe.generate(request)
    assert answer.encoding.reason == "an image or frame of one crop has no smaller picture"
    assert answer.encoding.encoded_tokens == answer.selection.num_visual_tokens


class Reference:
    """transformers' own template, tokenizer, preprocessing and generation."""

    def __init__(self, folder: Path, model: Any, images: Any, videos: Any) -> None:
        self.model, self.images, self.videos = model, images, videos
        self.tokenizer = Qwen2TokenizerFast.from_pretrained(folder)

    def generate(
        self, messages: Sequence[Any], images: Sequence[Image.Image], frames: Sequence[Image.Image] = ()
    ) -> tuple[int, ...]:
        inputs: dict[str, Any] = {}
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if images:
            pixels = self.images([list(images)], return_tensors="np")
            inputs |= {name: torch.from_numpy(np.asarray(value)) for name, value in pixels.items()}
            counts = [len(features) for features in image_features(self.model, pixels)]
            text = expand(text, "<image>", counts)
        if frames:
            videos = self.videos(list(frames), return_tensors="np")["pixel_values"]
            inputs["pixel_values_videos"] = torch.from_numpy(videos)[None]
            text = expand(text, "<video>", [len(frames) * POOLED_SIZE**2 + 1])
        ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **inputs,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for logits in output.logits:
            best, second = logits[0].topk(2).values.tolist()
            assert best - second > 1e-3, "the reference is nearly tied: choose another seed"
        return tuple(output.sequences[0, ids.shape[1] :].tolist())


def expand(text: str, placeholder: str, counts: Sequence[int]) -> str:
    head, *tails = text.split(placeholder)
    return head + "".join(placeholder * count + tail for count, tail in zip(counts, tails, strict=True))


@pytest.fixture(scope="module")
def reference(
    checkpoint: Path,
    model: LlavaOnevisionForConditionalGeneration,
    images: LlavaOnevisionImageProcessorPil,
    frames_processor: SiglipImageProcessorPil,
) -> Reference:
    return Reference(checkpoint, model, images, frames_processor)


def chat(*kinds: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("size", [(200, 200), (60, 60), (300, 100), (90, 420), (500, 400)])
def test_one_image_gives_the_tokens_of_transformers(pipe: Pipeline, reference: Reference, size: tuple[int, int]) -> None:
    image = picture(*size)
    answer = pipe.generate(Request(chat("image"), [image], max_new_tokens=NEW_TOKENS))
    assert answer.tokens == reference.generate(chat("image"), [image])


def test_several_images_over_two_turns_give_the_tokens_of_transformers(pipe: Pipeline, reference: Reference) -> None:
    pictures = [picture(200, 90, 1), picture(70, 140, 2), picture(50, 50, 3)]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "user"}]},
        *chat("image", "image"),
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        *chat("image"),
    ]
    answer = pipe.generate(Request(messages, pictures, max_new_tokens=NEW_TOKENS))
    assert answer.tokens == reference.generate(messages, pictures)
    assert answer.grids == ((1, 5, 5), (1, 1, 1)) * 3


def test_a_video_beside_an_image_gives_the_tokens_of_transformers(pipe: Pipeline, reference: Reference) -> None:
    """The template shows the image first, and it is alone: its high resolution stays."""
    frames, image = [picture(100, 80, seed) for seed in range(3)], picture(150, 150, 9)
    messages = chat("video", "image")
    answer = pipe.generate(Request(messages, [image], videos=[frames], max_new_tokens=NEW_TOKENS))
    assert answer.tokens == reference.generate(messages, [image], frames)
    assert answer.grids[0] == (1, 5, 5)
    assert answer.grids[-2:] == ((3, 3, 3), (1, 1, 1))


def test_pruning_keeps_as_many_tokens_as_asked_and_shows_them(pipe: Pipeline) -> None:
    answer = pipe.generate(Request.ask(QUESTION, [picture(200, 200)], keep_tokens=20, max_new_tokens=NEW_TOKENS))
    assert len(answer.selection.keep_indices) == 20
    assert answer.explain().width > 0


def test_positions_count_every_token(processor: LlavaOnevisionProcessor) -> None:
    image, video = processor.constants.image_token_id, processor.constants.video_token_id
    visuals = [Visual({}, ((1, 2, 2), (1, 1, 1)), ()), Visual({}, ((2, 1, 1), (1, 1, 1)), (), "video")]
    layout = processor.layout(np.array([7, image, 8, video]), visuals)
    assert layout.input_ids.tolist() == [7, *[image] * 5, 8, *[video] * 3]
    assert layout.position_ids.tolist() == [list(range(10))]
    assert layout.visual_indices.tolist() == [1, 2, 3, 4, 5, 7, 8, 9]
    assert layout.next_position == 10
    with pytest.raises(RequestError, match="placeholders for image, video, there are video, image"):
        processor.layout(np.array([7, image, 8, video]), visuals[::-1])
    with pytest.raises(RequestError, match="placeholders for nothing, there are image"):
        processor.layout(np.array([7]), visuals[:1])


def test_unknown_and_missing_constants_are_bundle_errors(constants: dict[str, Any]) -> None:
    for broken in ({**constants, "colour": 1}, {k: v for k, v in constants.items() if k != "max_crops"}):
        with pytest.raises(BundleError, match=r"LLaVA-OneVision's.*Export the bundle again"):
            opened(broken)


def test_unseen_pixels_are_cut_off_the_picture(processor: LlavaOnevisionProcessor) -> None:
    (shown,) = processor.image(picture(90, 30), alone=False).pictures
    assert shown.image.size == (GRID_SIZE * PATCH_SIZE,) * 2 != (IMAGE_SIZE,) * 2


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_generation_config_is_followed_as_by_transformers(
    case: str, pipe: Pipeline, reference: Reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = picture(300, 100)
    request = Request(chat("image"), [image], max_new_tokens=NEW_TOKENS)
    plain = pipe.generate(request).tokens
    follow(GENERATION_CASES[case](plain), pipe, reference.model, monkeypatch, tmp_path)
    changed = pipe.generate(request).tokens
    assert changed == reference.generate(chat("image"), [image])
    assert changed != plain or case.startswith("repetition_penalty")

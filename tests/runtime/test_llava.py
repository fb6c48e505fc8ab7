"""LLaVA-1.5's processor and pipeline against transformers: pixels and greedy tokens."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaForConditionalGeneration, Qwen2TokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from foveate.engines import BundleError, RequestError, SessionOptions, VisionShape
from foveate.engines.format.processors import read_constants
from foveate.runtime import Pipeline, Request, load
from foveate.runtime.processors import open_processor
from foveate.runtime.processors.llava import LlavaProcessor
from tests.generation_cases import GENERATION_CASES, follow
from tests.tiny_llava import GRID_SIZE, IMAGE_SIZE, PATCH_SIZE, PREPROCESSOR

NEW_TOKENS = 6
QUESTION = "What colour is the circle on the left?"
CONSTANTS: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    **{name: PREPROCESSOR[name] for name in ("image_mean", "image_std", "rescale_factor")},
    "image_token_id": 5,
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(constants: dict[str, Any]) -> LlavaProcessor:
    processor = open_processor("llava", read_constants("llava", constants))
    assert isinstance(processor, LlavaProcessor)
    return processor


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return opened(CONSTANTS)


@pytest.fixture(scope="module")
def clip() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(**PREPROCESSOR)


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_patches_are_those_of_transformers_bit_for_bit(
    processor: LlavaProcessor, clip: CLIPImageProcessorPil, height: int, width: int, seed: int
) -> None:
    image = picture(width, height, seed)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(RequestError, match=rf"{width} x {height} pixels, expected an aspect ratio of at most 200. Crop"):
            processor.image(image)
        return
    made = processor.image(image)
    expected = clip([image], return_tensors="np")["pixel_values"]
    blocks = expected.reshape(3, GRID_SIZE, PATCH_SIZE, GRID_SIZE, PATCH_SIZE).transpose(1, 3, 0, 2, 4)
    np.testing.assert_array_equal(made.feeds["pixel_values"], blocks.reshape(1, GRID_SIZE**2, -1))
    assert (made.kind, made.grids) == ("image", ((1, GRID_SIZE, GRID_SIZE),))
    (shown,) = made.pictures
    assert shown.image.size == (IMAGE_SIZE, IMAGE_SIZE)
    (cells,) = processor.cells(made)
    assert cells.shape == (1, GRID_SIZE, GRID_SIZE, PATCH_SIZE**2 * 3)
    np.testing.assert_array_equal(
        cells[0, 1, 2], np.asarray(shown.image)[PATCH_SIZE:, 2 * PATCH_SIZE :][:PATCH_SIZE, :PATCH_SIZE].ravel()
    )


def test_shapes_are_known_without_pixels() -> None:
    published = opened({**CONSTANTS, "image_size": 336})
    assert published.vision_shape(1000, 20) == VisionShape(1, 576, 576)
    assert published.vision_shape_of_tokens(577) == VisionShape(2, 576, 577)


def test_unknown_and_missing_constants_are_bundle_errors() -> None:
    for broken in ({**CONSTANTS, "colour": 1}, {k: v for k, v in CONSTANTS.items() if k != "patch_size"}):
        with pytest.raises(BundleError, match=r"LLaVA-1.5's.*Export the bundle again"):
            opened(broken)


class Reference:
    """transformers' own template, tokenizer, preprocessing and generation."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own
            self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.images = CLIPImageProcessorPil(**json.loads((folder / "preprocessor_config.json").read_text()))
        self.tokenizer = Qwen2TokenizerFast.from_pretrained(folder)

    def generate(self, messages: Sequence[Any], images: Sequence[Image.Image]) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self.tokenizer(text.replace("<image>", "<image>" * GRID_SIZE**2))["input_ids"]])
        pixels = {"pixel_values": self.images(list(images), return_tensors="pt")["pixel_values"]} if images else {}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pixels,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for logits in output.logits:
            best, second = logits[0].topk(2).values.tolist()
            assert best - second > 1e-3, "the reference is nearly tied: choose another seed"
        return tuple(output.sequences[0, ids.shape[1] :].tolist())


@pytest.fixture(scope="module")
def both(tiny_llava_bundle: Path) -> tuple[Pipeline, Reference]:
    return load(tiny_llava_bundle, options=SessionOptions(threads=1)), Reference(tiny_llava_bundle.parent / "checkpoint")


def chat(images: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("sizes", [[(200, 200)], [(60, 300)], [(90, 42), (500, 400)], []], ids=["one", "tall", "two", "none"])
def test_greedy_tokens_are_those_of_transformers(both: tuple[Pipeline, Reference], sizes: list[tuple[int, int]]) -> None:
    pipe, reference = both
    images, messages = [picture(*size) for size in sizes], chat(len(sizes))
    answer = pipe.generate(Request(messages, images, max_new_tokens=NEW_TOKENS))
    assert answer.tokens == reference.generate(messages, images)
    assert answer.grids == ((1, GRID_SIZE, GRID_SIZE),) * len(sizes)


def test_a_part_is_its_patches_each_at_its_place(both: tuple[Pipeline, Reference], processor: LlavaProcessor) -> None:
    pipe, _ = both
    prepared = pipe.prepare(Request.ask(QUESTION, [picture(56, 56)]))

    def run_vision(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(pipe._sessions["vision"].run(feeds)["visual_embeds"])

    (everything,) = processor.part(prepared.visuals[0], np.arange(GRID_SIZE**2))
    np.testing.assert_allclose(run_vision(everything.feeds), pipe.vision(prepared), atol=1e-5)
    tokens = np.array([2, 3, 9])
    (run,) = processor.part(prepared.visuals[0], tokens)
    assert run.feeds["patch_indices"].tolist() == [[2, 3, 9]]
    np.testing.assert_array_equal(run.feeds["pixel_values"], prepared.visuals[0].feeds["pixel_values"][:, tokens])
    moved = {**run.feeds, "patch_indices": run.feeds["patch_indices"] + 1}  # the same pixels at other places
    assert np.abs(run_vision(run.feeds) - run_vision(moved)).max() > 1e-3


def test_pruning_keeps_as_many_tokens_as_asked_and_shows_them(both: tuple[Pipeline, Reference]) -> None:
    pipe, _ = both
    answer = pipe.generate(Request.ask(QUESTION, [picture(200, 100)], keep_tokens=6, max_new_tokens=NEW_TOKENS))
    assert len(answer.selection.keep_indices) == 6
    assert answer.explain().width > 0


def test_a_video_is_refused(both: tuple[Pipeline, Reference], processor: LlavaProcessor) -> None:
    pipe, _ = both
    with pytest.raises(RequestError, match="part of type 'video', which this model does not take"):
        pipe.generate(Request.ask(QUESTION, videos=[[picture(50, 50)]]))
    with pytest.raises(RequestError, match=r"takes no videos\. Give their frames as images"):
        processor.video([picture(50, 50)], [0.0])


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_generation_config_is_followed_as_by_transformers(
    case: str, both: tuple[Pipeline, Reference], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe, reference = both
    images, messages = [picture(200, 200)], chat(1)
    request = Request(messages, images, max_new_tokens=NEW_TOKENS)
    plain = pipe.generate(request).tokens
    follow(GENERATION_CASES[case](plain), pipe, reference.model, monkeypatch, tmp_path)
    changed = pipe.generate(request).tokens
    assert changed == reference.generate(messages, images)
    assert changed != plain or case.startswith("repetition_penalty")

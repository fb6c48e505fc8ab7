"""VILA1.5's processor against transformers, and greedy tokens against the torch reference."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate.engines import BundleError, Manifest, RequestError, SessionOptions, VisionShape
from foveate.engines.format.processors import read_constants
from foveate.exporter import ExportOptions, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.families.llava_llama_reference import LlavaLlamaReference, regroup
from foveate.exporter.tower_reference import unpatch
from foveate.runtime import Pipeline, Request, Visual, load
from foveate.runtime.processors import open_processor
from foveate.runtime.processors.llava_llama import LlavaLlamaProcessor
from foveate.runtime.prompt import PromptEncoder
from models.downloads import LLAMA_3
from tests.downloads import npm_file
from tests.generation_cases import GENERATION_CASES, follow
from tests.tiny_llava_llama import PREPROCESSOR, TOKENIZERS, save_tiny, vicuna_tokenizer

NEW_TOKENS = 6
CONSTANTS: dict[str, Any] = {
    "image_size": 72,
    "patch_size": 14,
    "merge_size": 2,
    "image_mean": PREPROCESSOR["image_mean"],
    "image_std": PREPROCESSOR["image_std"],
    "rescale_factor": PREPROCESSOR["rescale_factor"],
    "image_token_id": 5,
    "frame_separator_ids": [8, 9],
}
PUBLISHED = CONSTANTS | {"image_size": 384}


def opened(constants: dict[str, Any]) -> LlavaLlamaProcessor:
    processor = open_processor("llava_llama", read_constants("llava_llama", constants))
    assert isinstance(processor, LlavaLlamaProcessor)
    return processor


@pytest.fixture(scope="module")
def processor() -> LlavaLlamaProcessor:
    return opened(CONSTANTS)


@pytest.fixture(scope="module")
def siglip() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(**PREPROCESSOR)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def visual(frames: int) -> Visual:
    return Visual({}, ((frames, 3, 3),), (), "image" if frames == 1 else "video")


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_patches_are_those_of_transformers_bit_for_bit(
    processor: LlavaLlamaProcessor, siglip: SiglipImageProcessorPil, height: int, width: int, seed: int
) -> None:
    pixels = noise(height, width, seed)
    made = processor.image(Image.fromarray(pixels))
    expected = siglip([Image.fromarray(pixels)], return_tensors="np")["pixel_values"]
    patches = made.feeds["pixel_values"]
    assert (patches.shape, patches.dtype) == ((1, 25, 588), np.float32)
    seen = unpatch(torch.from_numpy(patches), torch.arange(25)[None], 14, 72)[:, :, :70, :70].numpy()
    np.testing.assert_array_equal(seen, expected[:, :, :70, :70])
    assert (made.kind, made.grids, made.num_tokens) == ("image", ((1, 3, 3),), 9)


def test_a_video_is_its_frames(processor: LlavaLlamaProcessor) -> None:
    frames = [Image.fromarray(noise(40, 60, seed)) for seed in range(3)]
    video = processor.video(frames, [0.0, 0.5, 1.0])
    alone = [processor.image(frame).feeds["pixel_values"] for frame in frames]
    np.testing.assert_array_equal(video.feeds["pixel_values"], np.concatenate(alone))
    assert (video.kind, video.grids) == ("video", ((3, 3, 3),))
    assert [picture.seconds for picture in video.pictures] == [0.0, 0.5, 1.0]
    assert sorted(np.concatenate([picture.tokens for picture in video.pictures])) == list(range(27))


def test_pictures_show_which_patches_a_token_is_made_of(processor: LlavaLlamaProcessor) -> None:
    """The model's tokens go column by column, the cells of a picture row by row."""
    made_of = regroup(torch.arange(1, 26, dtype=torch.float32).reshape(1, 25, 1))[0]
    (picture,) = processor.image(Image.new("RGB", (50, 50))).pictures
    assert picture.grid == (3, 3)
    for cell, token in enumerate(picture.tokens):
        row, column = divmod(cell, 3)
        assert made_of[token, 0] == 1 + 2 * row * 5 + 2 * column


def test_a_picture_is_as_large_as_its_tokens(processor: LlavaLlamaProcessor) -> None:
    """Half of the last cells lies past the patches and is black."""
    (picture,) = processor.image(Image.new("RGB", (50, 50), "white")).pictures
    pixels = np.asarray(picture.image)
    expected = np.zeros((84, 84, 3))
    expected[:70, :70] = 255
    np.testing.assert_array_equal(pixels, expected)


def test_shapes_are_known_without_pixels() -> None:
    published = opened(PUBLISHED)
    assert published.vision_shape(1000, 20) == VisionShape(1, 729, 196)
    assert published.vision_shape_of_tokens(1) == VisionShape(1, 1, 1)  # a part of a frame
    assert published.vision_shape_of_tokens(196) == VisionShape(1, 729, 196)
    assert published.vision_shape_of_tokens(8 * 196) == VisionShape(8, 729, 1568)


@given(st.lists(st.integers(0, 5), max_size=8))
def test_placeholders_become_frames_with_separators(processor: LlavaLlamaProcessor, parts: list[int]) -> None:
    """0 is a text token, another number a visual of so many frames."""
    visuals = [visual(frames) for frames in parts if frames]
    layout = processor.layout(np.array([5 if frames else 1 for frames in parts], np.int64), visuals)
    expected: list[int] = []
    for frames in parts:
        expected += [5] * 9 + ([8, 9] + [5] * 9) * (frames - 1) if frames else [1]
    assert layout.input_ids.tolist() == expected
    assert layout.position_ids.tolist() == [list(range(len(expected)))]
    assert layout.next_position == len(expected)
    np.testing.assert_array_equal(layout.visual_indices, np.flatnonzero(np.array(expected) == 5))
    assert len(layout.visual_indices) == sum(one.num_tokens for one in visuals)
    assert (layout.input_ids.dtype, layout.position_ids.dtype, layout.visual_indices.dtype) == (np.int64,) * 3


def test_placeholders_and_visuals_must_agree(processor: LlavaLlamaProcessor) -> None:
    with pytest.raises(RequestError, match="1 placeholders, there are 2 images and videos"):
        processor.layout(np.array([1, 5]), [visual(1), visual(2)])


def test_unknown_and_missing_constants_are_bundle_errors() -> None:
    for broken in (CONSTANTS | {"colour": 1}, {k: v for k, v in CONSTANTS.items() if k != "merge_size"}):
        with pytest.raises(BundleError, match="Export the bundle again"):
            opened(broken)


# From pixels to tokens, for both conversation templates.

SYSTEM = {
    "llama_3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
    "assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language.<|eot_id|>",
    "vicuna_v1": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. ",
}
TURN = {
    "llama_3": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "vicuna_v1": "USER: {} ASSISTANT:",
}


@dataclass
class Published:
    """The model as published: its prompt is cut at `<image>`, each piece tokenized by itself, each frame put between two."""

    conversation: str
    model: LlavaLlamaReference
    tokenizer: Tokenizer
    images: SiglipImageProcessorPil
    manifest: Manifest

    def pieces(self, question: str) -> list[list[int]]:
        """Token ids of the text between the frames."""
        first, *others = (SYSTEM[self.conversation] + TURN[self.conversation].format(question)).split("<image>")
        return [self.tokenizer.encode(first).ids, *(self.tokenizer.encode(t, add_special_tokens=False).ids for t in others)]

    def inputs_embeds(self, question: str, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """`[tokens, hidden_size]` of the prompt."""
        text = [self.model.text_embeds(torch.tensor(ids)) for ids in self.pieces(question)]
        pixels = [self.images([Image.fromarray(frame)], return_tensors="pt")["pixel_values"] for frame in frames]
        parts = text[:1]
        for frame, following in zip(pixels, text[1:], strict=True):
            parts += [self.model.encode(frame)[0], following]
        return torch.cat(parts)

    def generate(self, question: str, frames: Sequence[np.ndarray]) -> tuple[int, ...]:
        """Greedy tokens, without any cache."""
        embeds = self.inputs_embeds(question, frames)
        tokens: list[int] = []
        while len(tokens) < NEW_TOKENS and not set(tokens) & set(self.manifest.prompt.eos_token_ids):
            with torch.no_grad():
                logits = self.model.forward(embeds, torch.arange(len(embeds))[None]).logits[-1]
            best, second = logits.topk(2).values.tolist()
            assert best - second > 1e-3, "the reference is nearly tied: choose another seed"
            tokens.append(int(logits.argmax()))
            embeds = torch.cat([embeds, self.model.text_embeds(torch.tensor(tokens[-1:]))])
        return tuple(tokens)


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Published]:
    folder = tmp_path_factory.mktemp("vila")
    checkpoint = save_tiny(folder / "checkpoint", request.param, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own; the exporter's tests look at them
        export(checkpoint, folder / "x.bundle", ExportOptions(check=False))
    pipe = load(folder / "x.bundle", options=SessionOptions(threads=1))
    tokenizer = Tokenizer.from_file(str(checkpoint / "llm" / "tokenizer.json"))
    model = LlavaLlamaReference(checkpoint, select_layer=-2)
    return pipe, Published(request.param, model, tokenizer, SiglipImageProcessorPil(**PREPROCESSOR), pipe.manifest)


def merges(feeds: dict[str, Any]) -> np.ndarray:
    """The vision graph with a number of each patch for its features, and no projector."""
    return np.asarray(np.append(feeds["pixel_values"][:, :, 0], 0)[feeds["gather_indices"]])


@settings(max_examples=30)
@given(st.integers(1, 3), st.sets(st.integers(0, 8), min_size=1))
def test_a_part_merges_the_same_patches(processor: LlavaLlamaProcessor, frames: int, chosen: set[int]) -> None:
    pictures = [Image.fromarray(noise(80, 80, seed)) for seed in range(frames)]
    visual = processor.video(pictures, [float(number) for number in range(frames)])
    tokens = np.array(sorted({token * frames for token in chosen}))
    runs = processor.part(visual, tokens)
    assert np.concatenate([run.tokens for run in runs]).tolist() == tokens.tolist()
    np.testing.assert_array_equal(np.concatenate([merges(dict(run.feeds)) for run in runs]), merges(dict(visual.feeds))[tokens])
    for run in runs:  # no patch that no token needs
        rows = run.feeds["gather_indices"]
        assert set(rows.ravel().tolist()) | {run.feeds["patch_indices"].size} == set(range(run.feeds["patch_indices"].size + 1))


def test_a_part_of_everything_is_the_whole(processor: LlavaLlamaProcessor, both: tuple[Pipeline, Published]) -> None:
    pipe, _ = both
    prepared = pipe.prepare(Request.ask(QUESTION, videos=[[noise(64, 48, seed) for seed in range(3)]]))
    runs = processor.part(prepared.visuals[0], np.arange(27))
    made = [np.asarray(pipe._sessions["vision"].run(run.feeds)["visual_embeds"]) for run in runs]
    assert len(made) == 3
    np.testing.assert_allclose(np.concatenate(made), pipe.vision(prepared), atol=1e-5)


def test_cells_are_the_pixels_of_the_visual_tokens(processor: LlavaLlamaProcessor) -> None:
    visual = processor.video([Image.fromarray(noise(80, 80, seed)) for seed in range(2)], [0.0, 1.0])
    (cells,) = processor.cells(visual)
    assert (cells.shape, cells.dtype) == ((2, 3, 3, 28 * 28 * 3), np.uint8)
    for frame, shown in enumerate(visual.pictures):
        pixels = np.asarray(shown.image)
        for cell, token in enumerate(shown.tokens.tolist()):
            y, x = (28 * place for place in divmod(cell, 3))
            np.testing.assert_array_equal(cells.reshape(18, -1)[token], pixels[y : y + 28, x : x + 28].ravel(), str(frame))


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
QUESTION = "What colour is the circle on the left?"


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CASES: dict[str, tuple[list[dict[str, str]], int, list[int], str]] = {
    "one image": ([IMAGE, text(QUESTION)], 1, [], f"<image>\n{QUESTION}"),
    "several images": ([IMAGE, IMAGE, text(QUESTION)], 2, [], f"<image>\n<image>\n{QUESTION}"),
    "images between texts": ([text("A "), IMAGE, text("and "), IMAGE, text("?")], 2, [], "A <image>\nand <image>\n?"),
    "frames of a video": ([VIDEO, text(QUESTION)], 0, [4], f"<image>\n<image>\n<image>\n<image>\n{QUESTION}"),
    "a video before an image": ([VIDEO, IMAGE, text("Why?")], 1, [2], "<image>\n<image>\n<image>\nWhy?"),
    "text only": ([text(QUESTION)], 0, [], QUESTION),
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_the_reference(case: str, both: tuple[Pipeline, Published]) -> None:
    content, num_images, lengths, question = CASES[case]
    pipe, published = both
    images = [noise(50 + seed, 80, seed) for seed in range(num_images)]
    videos = [[noise(64, 48, 10 + number) for number in range(length)] for length in lengths]
    messages = [{"role": "user", "content": content}]
    request = Request(messages, images, videos=videos, max_new_tokens=NEW_TOKENS)
    frames = [frame for video in videos for frame in video] + images  # a video comes first in every case that has both
    pieces = published.pieces(question)
    prepared = pipe.prepare(request)
    kept = np.delete(prepared.layout.input_ids, prepared.layout.visual_indices)
    assert kept.tolist() == [token for piece in pieces for token in piece]
    assert prepared.num_visual_tokens == 9 * len(frames)
    assert prepared.layout.input_ids.max() < pipe.manifest.decoder.vocab_size
    assert pipe.generate(request).tokens == published.generate(question, frames)


@pytest.mark.parametrize("scheme", ["first", "always", "normalizer"])
def test_tokens_around_placeholders_are_those_of_the_pieces(scheme: str, tmp_path: Path) -> None:
    """Whether a tokenizer starts a word behind every control token or only at the start of the prompt."""
    folder = save_tiny(tmp_path / "checkpoint", "vicuna_v1")
    tokenizer = vicuna_tokenizer(scheme)
    tokenizer.save(str(folder / "llm" / "tokenizer.json"))
    encoder = PromptEncoder(read_family(Checkpoint.open(folder)).prompt(), tokenizer)
    messages = [{"role": "user", "content": [IMAGE, IMAGE, text("What?")]}]
    expected: list[int] = []
    for piece in (SYSTEM["vicuna_v1"] + "USER: <image>\n<image>\nWhat? ASSISTANT:").split("<image>"):
        expected += [0, *tokenizer.encode(piece, add_special_tokens=False).ids]
    assert encoder.encode(messages).input_ids.tolist() == [1, *expected[1:]]


@pytest.mark.parametrize("conversation", TOKENIZERS)
def test_limits_of_training_and_the_bos_that_the_tokenizer_adds(conversation: str, tmp_path: Path) -> None:
    """The template has the BOS that VILA's code leaves to the tokenizer; truncation and padding are no part of a prompt."""
    folder = save_tiny(tmp_path / "checkpoint", conversation)
    file = folder / "llm" / "tokenizer.json"
    messages = [{"role": "user", "content": [IMAGE, text("What?")]}]

    def encode(tokenizer: Tokenizer) -> list[int]:
        entry = read_family(Checkpoint.open(folder)).prompt()
        assert entry.template_tokens == {"bos_token": tokenizer.encode("").tokens[0]}
        old = structs.replace(entry, template_tokens={})  # as bundles had it before
        ids: list[int] = PromptEncoder(entry, tokenizer).encode(messages).input_ids.tolist()
        assert PromptEncoder(old, tokenizer).encode(messages).input_ids.tolist() == ids
        return ids

    expected = encode(Tokenizer.from_file(str(file)))
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(file))
    assert encode(Checkpoint.open(folder).load_tokenizer()) == expected


def test_a_real_llama_3_vocabulary(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "checkpoint", "llama_3")
    tokenizer = Tokenizer.from_file(str(npm_file(LLAMA_3)))
    tokenizer.save(str(folder / "llm" / "tokenizer.json"))
    config = json.loads((folder / "llm" / "config.json").read_text())
    config["vocab_size"] = tokenizer.get_vocab_size()
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    family = read_family(Checkpoint.open(folder))
    prompt = family.prompt()
    assert prompt.image_token == "<|reserved_special_token_0|>"
    assert prompt.eos_token_ids[:2] == (128009, 128001)
    assert family.processor().frame_separator_ids == (198,)
    ids = PromptEncoder(prompt, tokenizer).encode([{"role": "user", "content": [IMAGE, IMAGE, text("What?")]}]).input_ids
    pieces = (SYSTEM["llama_3"] + TURN["llama_3"].format("<image>\n<image>\nWhat?")).split("<image>")
    expected = [[128002, *tokenizer.encode(piece, add_special_tokens=False).ids] for piece in pieces[1:]]
    assert ids.tolist() == [*tokenizer.encode(pieces[0]).ids, *expected[0], *expected[1]]


def test_a_callers_placeholder_stays_text(both: tuple[Pipeline, Published]) -> None:
    pipe, _ = both
    content = [IMAGE, text(f"What is {pipe.manifest.prompt.image_token}?")]
    prepared = pipe.prepare(Request([{"role": "user", "content": content}], [noise(50, 50)]))
    assert prepared.num_visual_tokens == 9


def test_a_pruned_video_is_explained_frame_by_frame(both: tuple[Pipeline, Published]) -> None:
    pipe, _ = both
    frames = [noise(64, 48, seed) for seed in range(3)]
    answer = pipe.generate(Request.ask(QUESTION, videos=[frames], keep=0.5, max_new_tokens=2))
    assert (answer.selection.num_visual_tokens, len(answer.pictures)) == (27, 3)
    assert len(answer.selection.keep_indices) in (13, 14)
    assert answer.explain().size[0] > 0


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_generation_config_is_followed_as_by_the_language_model(
    case: str, both: tuple[Pipeline, Published], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """VILA gives it embeddings, so that penalties see the answer alone."""
    pipe, published = both
    image, content = noise(50, 80), [IMAGE, text(QUESTION)]
    request = Request([{"role": "user", "content": content}], [image], max_new_tokens=NEW_TOKENS)
    plain = pipe.generate(request).tokens
    follow(GENERATION_CASES[case](plain), pipe, published.model.llm, monkeypatch, tmp_path, prompt_counts=False)
    embeds = published.inputs_embeds(f"<image>\n{QUESTION}", [image])[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that penalties see no prompt
        expected = published.model.llm.generate(
            inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS
        )
    changed = pipe.generate(request).tokens
    assert changed == tuple(expected[0].tolist())
    assert changed != plain or case.startswith(("repetition_penalty", "no_repeat_ngram_size"))

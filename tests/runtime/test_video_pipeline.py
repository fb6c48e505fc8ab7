"""Videos from file to tokens, on the real graphs, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.engines import RequestError
from foveate.runtime import Budget, Pipeline, Request, open_video
from models.scenes.checkpoint import PREPROCESSOR
from tests.runtime.clips import encode, grey, moving_square
from tests.runtime.test_pipeline import NEW_TOKENS, QUESTION, picture

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
LIMITS = {"shortest_edge": PREPROCESSOR["min_pixels"], "longest_edge": PREPROCESSOR["max_pixels"]}
"""Of frames, as the checkpoint's video_preprocessor_config.json has them."""


def chat(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def frames_of(count: int, seed: int = 0) -> list[Image.Image]:
    return [Image.fromarray(picture(230, 300, seed + number)) for number in range(count)]


def pixels_of_video(reference: Any, frames: list[Image.Image]) -> tuple[torch.Tensor, list[int]]:
    """`pixel_values_videos` and a row of `video_grid_thw`, made of images: a patch of an image has its pixels twice, once for
    each of its two frames. (transformers' own video processor needs torchvision.)"""
    frames = frames + frames[-1:] * (len(frames) % 2)
    images = [reference.images([frame], size=LIMITS, return_tensors="np") for frame in frames]
    once = np.stack([image["pixel_values"].reshape(-1, 3, 2, 14 * 14)[:, :, 0] for image in images])
    steps = np.stack([once[::2], once[1::2]], axis=3).reshape(-1, 3 * 2 * 14 * 14)
    return torch.from_numpy(steps), [len(frames) // 2, *images[0]["image_grid_thw"][0, 1:].tolist()]


def inputs_of(reference: Any, messages: list[Any], images: list[Any], videos: list[list[Image.Image]]) -> dict[str, Any]:
    """What transformers' `forward` takes for a chat."""
    inputs: dict[str, Any] = {}
    if images:
        pixels = reference.images(images, return_tensors="pt")
        inputs |= {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
    if videos:
        pixels, grids = zip(*(pixels_of_video(reference, frames) for frames in videos), strict=True)
        inputs |= {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
    text = reference.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for token, name in (("<|image_pad|>", "image_grid_thw"), ("<|video_pad|>", "video_grid_thw")):
        head, *tails = text.split(token)
        for grid, tail in zip(inputs.get(name, ()), tails, strict=True):
            head += token * int(grid.prod() // 4) + tail
        text = head
    input_ids = torch.tensor([reference.tokenizer(text)["input_ids"]])
    config = reference.model.config
    kinds = (input_ids == config.image_token_id) + 2 * (input_ids == config.video_token_id)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "mm_token_type_ids": kinds.int(), **inputs}


def expected_tokens(reference: Any, inputs: dict[str, Any]) -> tuple[int, ...]:
    output = reference.model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, output_logits=True, return_dict_in_generate=True
    )
    for logits in output.logits:
        check_gap(logits[0])
    return tuple(output.sequences[0, inputs["input_ids"].shape[1] :].tolist())


def expected_pruned_tokens(reference: Any, inputs: dict[str, Any], keep_indices: np.ndarray) -> tuple[int, ...]:
    """Without any cache: embeddings and positions are those of the whole prompt, and rows are dropped from both."""
    model, input_ids, embed = reference.model.model, inputs["input_ids"], reference.model.get_input_embeddings()
    tokens: list[int] = []
    with torch.no_grad():
        embeds = embed(input_ids)
        for kind, features in (
            (1, model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])),
            (2, model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])),
        ):
            embeds[0, inputs["mm_token_type_ids"][0] == kind] = torch.cat(list(features.pooler_output))
        grids = inputs["image_grid_thw"], inputs["video_grid_thw"]
        positions, _ = model.get_rope_index(input_ids, inputs["mm_token_type_ids"], *grids)
        following = positions.max() + 1
        stays = inputs["mm_token_type_ids"][0] == 0
        stays[torch.nonzero(~stays)[keep_indices, 0]] = True
        embeds, positions = embeds[:, stays], positions[:, :, stays]
        for step in range(NEW_TOKENS):
            hidden = model.language_model(inputs_embeds=embeds, position_ids=positions)[0]
            logits = reference.model.lm_head(hidden[0, -1])
            check_gap(logits)
            tokens.append(int(logits.argmax()))
            embeds = torch.cat([embeds, embed(torch.tensor([tokens[-1:]]))], dim=1)
            positions = torch.cat([positions, (following + step).expand(3, 1, 1)], dim=2)
            if tokens[-1] == reference.model.generation_config.eos_token_id:
                break
    return tuple(tokens)


def check_gap(logits: torch.Tensor) -> None:
    """Equal tokens mean something only where the likeliest stands out by far more than rounding."""
    best, second = logits.topk(2).values.tolist()
    assert best - second > 1e-3, "the reference is nearly tied: choose another seed"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_video_gives_the_tokens_of_transformers(pipe: Pipeline, reference: Any, count: int) -> None:
    frames = frames_of(count)
    answer = pipe.generate(Request.ask(QUESTION, videos=[frames], keep=1.0, max_new_tokens=NEW_TOKENS))
    assert answer.grids[0][0] == -(-count // 2)
    assert answer.tokens == expected_tokens(reference, inputs_of(reference, chat(VIDEO), [], [frames]))


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_images_and_videos_between_texts_give_the_tokens_of_transformers(pipe: Pipeline, reference: Any, keep: float) -> None:
    images, videos = [picture(230, 260, 1), picture(240, 200, 2)], [frames_of(3, 10), frames_of(4, 20)]
    messages = chat(VIDEO, {"type": "text", "text": "left"}, IMAGE, IMAGE, {"type": "text", "text": "right"}, VIDEO)
    request = Request(messages, images, Budget(ratio=keep), videos=videos, max_new_tokens=NEW_TOKENS)
    answer = pipe.generate(request)
    assert [grid[0] for grid in answer.grids] == [2, 1, 1, 2]
    inputs = inputs_of(reference, messages, images, videos)
    total = sum(frames * rows * columns for frames, rows, columns in answer.grids)
    assert len(answer.selection.keep_indices) == round(keep * total)  # one budget over all images and frames
    if keep == 1:
        assert answer.tokens == expected_tokens(reference, inputs)
    assert answer.tokens == expected_pruned_tokens(reference, inputs, answer.selection.keep_indices)


def test_a_file_gives_the_answer_of_its_frames(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode([grey(number) for number in range(30)]))
    clip = open_video(path, fps=2, max_frames=4, rule="qwen-vl-utils")
    request = Request.ask(QUESTION, videos=path, fps=2, max_frames=4, keep=0.5, max_new_tokens=NEW_TOKENS)
    answer = pipe.generate(request)
    frames = pipe.generate(Request.ask(QUESTION, videos=[clip.frames], keep=0.5, max_new_tokens=NEW_TOKENS))
    assert answer.tokens == frames.tokens
    np.testing.assert_array_equal(answer.selection.keep_indices, frames.selection.keep_indices)
    assert json.loads(json.dumps(answer.to_dict()))["frame_seconds"] == pytest.approx(clip.seconds)
    assert len(clip.frames) == 4


def test_a_part_may_carry_its_own_video(pipe: Pipeline) -> None:
    first, second = frames_of(2, 3), frames_of(2, 7)
    own = Request(chat({"type": "video", "video": first}, VIDEO), videos=[second], max_new_tokens=2)
    given = Request(chat(VIDEO, VIDEO), videos=[first, second], max_new_tokens=2)
    swapped = Request(chat(VIDEO, VIDEO), videos=[second, first], max_new_tokens=2)
    logits = [pipe.first_logits(prepared, pipe.vision(prepared)) for prepared in map(pipe.prepare, (own, given, swapped))]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 1e-3


def test_evs_keeps_what_moves(pipe: Pipeline) -> None:
    """A square moves by its own width each frame over a still ground. Apart from the first step, which EVS keeps first, it
    should keep the tokens where the square is or just was."""
    content = encode(moving_square(8, size=224, side=56), rate=2, options={"qp": "0"})
    request = Request.ask(QUESTION, videos=content, fps=2, keep=0.375, select="evs", max_new_tokens=1)
    answer = pipe.generate(request)
    ((steps, rows, columns),) = answer.grids
    assert steps == 4
    kept = np.zeros((steps, rows, columns), bool)
    kept.flat[answer.selection.keep_indices] = True
    assert kept[0].all()
    band = np.zeros(rows, bool)
    band[rows // 4 - 1 : rows // 2 + 1] = True  # the square's rows, and a token more on either side
    assert kept[1:, band].sum() > 0.9 * kept[1:].sum()


def test_evs_needs_a_video(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="this request has only images"):
        pipe.generate(Request.ask(QUESTION, [picture(224, 224)], keep=0.5, select="evs"))


def test_an_explanation_has_a_row_for_each_frame(pipe: Pipeline) -> None:
    def height(count: int) -> int:
        return pipe.generate(Request.ask(QUESTION, videos=[frames_of(count)], keep=0.5, max_new_tokens=1)).explain().height

    answer = pipe.generate(Request.ask(QUESTION, picture(224, 224), videos=[frames_of(3)], keep=0.5, max_new_tokens=1))
    assert [picture.seconds for picture in answer.pictures] == [None, 0.0, 1.0, 2.0]
    assert answer.pictures[1].tokens.min() == 64  # behind the image's
    answer.explain()
    assert height(2) > height(1)


def test_a_video_and_its_placeholder_must_agree(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="1 video parts without a source and the request 0 videos"):
        pipe.generate(Request(chat(VIDEO)))
    with pytest.raises(RequestError, match="0 video parts without a source and the request 1 videos"):
        pipe.generate(Request(chat(IMAGE), [picture(64, 64)], videos=[frames_of(1)]))

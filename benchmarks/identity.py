"""Greedy tokens of a bundle at keep 1 against the reference implementation, on held-out prompts with images and video.

    python -m benchmarks.identity models/qwen2-vl-tiny tiny.bundle --count 200

The reference of Qwen2-VL and LLaVA-OneVision is transformers' `generate` behind its own template, tokenizer and processors,
that of VILA1.5 the torch model of its published architecture behind transformers' processor and the prompt as its authors cut
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
import torch
from PIL import Image
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2TokenizerFast, Qwen2VLForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import foveate
from foveate.exporter.checkpoint import read_json
from foveate.exporter.families.llava_llama_reference import LlavaLlamaReference
from models.scenes.dataset import SPLITS, sample
from models.scenes.render import render
from models.scenes.tasks import KINDS, Kind, sample_task
from models.scenes.worlds import WORLDS

MAX_NEW_TOKENS = 8


class Reference(Protocol):
    """Another implementation of a checkpoint."""

    def tokens(self, pictures: Sequence[Image.Image], kind: Kind, question: str) -> list[int]:
        """Greedy tokens of one question about images or about the frames of one video, with the end token."""
        ...


class Qwen2VL:
    """transformers; see `Reference`."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        video = read_json(checkpoint / "video_preprocessor_config.json")
        self.frame_size = {"shortest_edge": video["min_pixels"], "longest_edge": video["max_pixels"]}
        self.tokenizer = Qwen2TokenizerFast.from_pretrained(checkpoint)

    def tokens(self, pictures: Sequence[Image.Image], kind: Kind, question: str) -> list[int]:
        name, placeholder = ("video", "<|video_pad|>") if kind == "video" else ("image", "<|image_pad|>")
        pixels, grids = self._video(pictures) if kind == "video" else self._images(pictures)
        text = self.tokenizer.apply_chat_template(chat(name, len(grids), question), tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self.tokenizer(expand(text, placeholder, [int(grid.prod()) // 4 for grid in grids]))["input_ids"]])
        config = self.model.config
        kinds = (ids == config.image_token_id) + 2 * (ids == config.video_token_id)
        names = ("pixel_values_videos", "video_grid_thw") if kind == "video" else ("pixel_values", "image_grid_thw")
        return generate(self.model, ids, mm_token_type_ids=kinds.int(), **dict(zip(names, (pixels, grids), strict=True)))

    def _images(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        output = self.processor(list(pictures), return_tensors="np")
        return torch.from_numpy(np.asarray(output["pixel_values"])), torch.from_numpy(np.asarray(output["image_grid_thw"]))

    def _video(self, frames: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """transformers' video processor needs torchvision: each frame is one half in time of what its image processor makes."""
        frames = [*frames, *frames[-1:] * (len(frames) % 2)]
        outputs = [self.processor(frame, size=self.frame_size, return_tensors="np") for frame in frames]
        halves = [output["pixel_values"].reshape(-1, 3, 2, 14 * 14)[:, :, 0] for output in outputs]
        steps = [np.stack(pair, axis=2).reshape(len(halves[0]), -1) for pair in zip(halves[::2], halves[1::2], strict=True)]
        _, rows, columns = outputs[0]["image_grid_thw"][0].tolist()
        return torch.from_numpy(np.concatenate(steps)), torch.tensor([[len(steps), rows, columns]])


class LlavaOnevision:
    """transformers; see `Reference`."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor = LlavaOnevisionImageProcessorPil.from_pretrained(checkpoint)
        values = read_json(checkpoint / "preprocessor_config.json")
        # transformers' video processor needs torchvision; this does the same with PIL: resize, rescale, normalise.
        names = ("size", "image_mean", "image_std", "resample", "rescale_factor")
        self.frames = SiglipImageProcessorPil(**{name: values[name] for name in names})
        self.tokenizer = Qwen2TokenizerFast.from_pretrained(checkpoint)

    @torch.no_grad()
    def tokens(self, pictures: Sequence[Image.Image], kind: Kind, question: str) -> list[int]:
        inputs: dict[str, Tensor] = {}
        if kind == "video":
            pixels = torch.from_numpy(self.frames(list(pictures), return_tensors="np")["pixel_values"])
            counts = [len(self.model.model.get_video_features(pixels[None]).pooler_output[0])]
            inputs["pixel_values_videos"], name = pixels[None], "video"
        else:
            output = self.processor([list(pictures)], return_tensors="np")
            inputs = {key: torch.from_numpy(np.asarray(value)) for key, value in output.items()}
            counts, name = [len(features) for features in self.model.get_image_features(**inputs).pooler_output], "image"
        text = self.tokenizer.apply_chat_template(chat(name, len(counts), question), tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([self.tokenizer(expand(text, f"<{name}>", counts))["input_ids"]])
        return generate(self.model, ids, **inputs)


class LlavaLlama:
    """The published prompt, cut at `<image>` and each piece tokenized by itself, and the torch model; see `Reference`."""

    SYSTEM = (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able to "
        "understand the visual content that the user provides, and assist the user with a variety of tasks using natural "
        "language.<|eot_id|>"
    )
    USER = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"

    def __init__(self, checkpoint: Path) -> None:
        layer = read_json(checkpoint / "config.json")["mm_vision_select_layer"]
        self.model = LlavaLlamaReference(checkpoint, layer)
        self.processor = SiglipImageProcessorPil.from_pretrained(checkpoint / "vision_tower")
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "llm" / "tokenizer.json"))

    @torch.no_grad()
    def tokens(self, pictures: Sequence[Image.Image], kind: Kind, question: str) -> list[int]:
        text = self.SYSTEM + self.USER.format("<image>\n" * len(pictures) + question)
        first, *others = text.split("<image>")
        frames = self.model.encode(self.processor(list(pictures), return_tensors="pt")["pixel_values"])
        parts = [self.model.text_embeds(torch.tensor(self.tokenizer.encode("<|begin_of_text|>" + first).ids))]
        for frame, piece in zip(frames, others, strict=True):
            ids = self.tokenizer.encode(piece, add_special_tokens=False).ids
            parts += [frame, self.model.text_embeds(torch.tensor(ids))]
        embeds, stop = torch.cat(parts), self.tokenizer.token_to_id("<|eot_id|>")
        tokens: list[int] = []
        while len(tokens) < MAX_NEW_TOKENS and stop not in tokens:
            logits = self.model.forward(embeds, torch.arange(len(embeds))[None]).logits
            tokens.append(int(logits[-1].argmax()))
            embeds = torch.cat([embeds, self.model.text_embeds(torch.tensor(tokens[-1:]))])
        return tokens


REFERENCES: dict[str, Any] = {"qwen2-vl-tiny": Qwen2VL, "llava-onevision-tiny": LlavaOnevision, "vila1.5-tiny": LlavaLlama}


def chat(kind: str, count: int, question: str) -> list[dict[str, Any]]:
    """One turn with `count` images or videos and the question behind them."""
    return [{"role": "user", "content": [*[{"type": kind}] * count, {"type": "text", "text": question}]}]


def expand(text: str, placeholder: str, counts: Sequence[int]) -> str:
    """Each placeholder as often as its image or video has visual tokens."""
    head, *tails = text.split(placeholder)
    return head + "".join(placeholder * count + tail for count, tail in zip(counts, tails, strict=True))


@torch.no_grad()
def generate(model: Any, ids: Tensor, **inputs: Tensor) -> list[int]:
    """Greedy tokens of transformers."""
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, **inputs
    )
    tokens: list[int] = output[0, ids.shape[1] :].tolist()
    return tokens


def answer(
    pipe: foveate.Pipeline, pictures: Sequence[Image.Image], kind: Kind, question: str, keep: float = 1.0
) -> foveate.Answer:
    """One question about images or about the frames of one video, answered greedily."""
    visuals: dict[str, Any] = {"videos": [pictures]} if kind == "video" else {"images": pictures}
    return pipe.generate(foveate.Request.ask(question, **visuals, keep=keep, max_new_tokens=MAX_NEW_TOKENS))


def differing(name: str, reference: Reference, pipe: foveate.Pipeline, kind: Kind, count: int) -> list[tuple[Any, ...]]:
    """What the two answer differently, of `count` held-out tasks of a kind."""
    different = []
    for index in track(range(count), description=f"{name}, {kind}"):
        task = sample_task(WORLDS[name], "heldout", 0, index, kind, 1)
        pictures, question = task.pictures(), task.questions[0].text
        ours, theirs = list(answer(pipe, pictures, kind, question).tokens), reference.tokens(pictures, kind, question)
        if ours != theirs:
            different.append((kind, index, question, ours, theirs))
    return different


def differing_scenes(reference: Reference, pipe: foveate.Pipeline, split: str, count: int) -> list[tuple[Any, ...]]:
    """The same for the scenes of `models/README.md`, among them larger ones than any training has seen."""
    different = []
    for index in track(range(count), description=split):
        scene, (question,) = sample(split, 0, index)
        pictures = [render(scene)]
        ours = list(answer(pipe, pictures, "image", question.text).tokens)
        theirs = reference.tokens(pictures, "image", question.text)
        if ours != theirs:
            different.append((split, index, question.text, ours, theirs))
    return different


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--count", default=100, show_default=True, help="Prompts of each kind.")
@click.option("--split", type=click.Choice(list(SPLITS)), help="These scenes instead.")
def main(checkpoint: Path, bundle: Path, count: int, split: str | None) -> None:
    name = checkpoint.resolve().name
    reference = REFERENCES[name](checkpoint)
    kinds: Sequence[Any] = [split] if split else KINDS
    different = []
    with foveate.load(bundle) as pipe:
        for kind in kinds:
            found = differing_scenes(reference, pipe, kind, count) if split else differing(name, reference, pipe, kind, count)
            click.echo(f"{kind}: {count - len(found)} of {count} prompts give identical greedy tokens")
            different += found
    for row in different:
        click.echo(f"different: {row}")
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

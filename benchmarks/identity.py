"""Greedy tokens of a bundle at keep 1 against transformers' `generate`, on held-out prompts.

python -m benchmarks.identity models/qwen2-vl-tiny tiny.bundle --count 200
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import foveate
from benchmarks.scenes.dataset import SPLITS, sample
from benchmarks.scenes.render import render


class Reference:
    """The checkpoint in transformers: its own image processor, tokenizer file and `generate`."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def tokens(self, image: object, question: str, max_new_tokens: int) -> list[int]:
        """Greedy tokens of one question about one image, with the end token."""
        pixels = self.processor(image, return_tensors="np")
        grid = torch.as_tensor(np.asarray(pixels["image_grid_thw"]))
        count = int(grid.prod()) // self.processor.merge_size**2
        prompt = (
            f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>{question}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        input_ids = torch.tensor([self.tokenizer.encode(prompt).ids])
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=(input_ids == self.model.config.image_token_id).int(),
            pixel_values=torch.as_tensor(np.asarray(pixels["pixel_values"])),
            image_grid_thw=grid,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return output[0, input_ids.shape[1] :].tolist()


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(list(SPLITS)), default="heldout", show_default=True)
@click.option("--count", default=200, show_default=True)
@click.option("--max-new-tokens", default=16, show_default=True)
def main(checkpoint: Path, bundle: Path, split: str, count: int, max_new_tokens: int) -> None:
    reference, pipe = Reference(checkpoint), foveate.load(bundle)
    different = []
    for index in track(range(count), description=split):
        scene, (question,) = sample(split, 0, index)
        image = render(scene)
        request = foveate.Request.ask(question.text, [image], keep=1.0, max_new_tokens=max_new_tokens)
        ours = list(pipe.generate(request).tokens)
        theirs = reference.tokens(image, question.text, max_new_tokens)
        if ours != theirs:
            different.append((index, question.text, ours, theirs))
    click.echo(f"{count - len(different)} of {count} prompts give identical greedy tokens")
    for row in different:
        click.echo(f"different: {row}")
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

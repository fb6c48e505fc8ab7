"""A tiny random Qwen2-VL: its checkpoint, its bundle, and transformers' answers to hold the runtime against."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from foveate.engines import PromptEntry, SessionOptions
from foveate.engines.format.processors import read_constants
from foveate.runtime import Pipeline, load
from foveate.runtime.processors import open_processor
from foveate.runtime.processors.qwen2_vl import Qwen2VLProcessor
from foveate.runtime.prompt import PromptEncoder
from models.scenes.checkpoint import (
    CHAT_TEMPLATE,
    PREPROCESSOR,
    build_config,
    build_model,
    build_tokenizer,
    save_checkpoint,
)

MAX_NEW_TOKENS = 8


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


@pytest.fixture(scope="session")
def prompt_entry(tokenizer: Tokenizer) -> PromptEntry:
    return PromptEntry(
        chat_template=CHAT_TEMPLATE,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        eos_token_ids=(tokenizer.token_to_id("<|im_end|>"),),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        max_new_tokens=MAX_NEW_TOKENS,
    )


@pytest.fixture(scope="session")
def encoder(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> PromptEncoder:
    return PromptEncoder(prompt_entry, tokenizer)


@pytest.fixture(scope="session")
def constants(tokenizer: Tokenizer) -> dict[str, Any]:
    """`manifest.processor`; small images, so that tests are fast."""
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "rescale_factor")
    tokens = {"image_pad": "image", "video_pad": "video"}
    return {
        **{name: PREPROCESSOR[name] for name in names},
        **{f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>") for token, name in tokens.items()},
        "min_pixels": 4 * 28 * 28,
        "max_pixels": 64 * 28 * 28,
    }


@pytest.fixture(scope="session")
def processor(constants: dict[str, Any]) -> Qwen2VLProcessor:
    opened = open_processor("qwen2_vl", read_constants("qwen2_vl", constants))
    assert isinstance(opened, Qwen2VLProcessor)
    return opened


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A checkpoint whose layers, not its tied table, decide what comes next: greedy tokens vary and are far from ties."""
    import torch

    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model(build_config(tokenizer), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter *= 4
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exporter = pytest.importorskip("foveate.exporter")
    folder = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own; the exporter's tests look at them
        exporter.export(checkpoint, folder, exporter.ExportOptions(check=False))
    return folder


@pytest.fixture(scope="session")
def pipe(bundle: Path) -> Pipeline:
    return load(bundle, options=SessionOptions(threads=1))


@dataclass
class Reference:
    """transformers' answers: its own tokenizer, image processor, positions and generation."""

    model: Any
    tokenizer: Any
    images: Any

    @classmethod
    def open(cls, folder: Path) -> Reference:
        import torch
        from transformers import Qwen2TokenizerFast, Qwen2VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, Qwen2TokenizerFast.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder))

    def inputs(self, messages: Sequence[Any], images: Sequence[np.ndarray]) -> dict[str, Any]:
        """What the model's `forward` takes for a chat."""
        import torch

        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pixels = self.images(list(images), return_tensors="np") if images else {}
        head, *tails = text.split("<|image_pad|>")
        for grid, tail in zip(pixels.get("image_grid_thw", ()), tails, strict=True):
            head += "<|image_pad|>" * int(grid.prod() // 4) + tail
        input_ids = torch.tensor([self.tokenizer(head)["input_ids"]])
        inputs = {name: torch.from_numpy(value) for name, value in pixels.items()}
        if images:
            inputs["mm_token_type_ids"] = (input_ids == self.model.config.image_token_id).int()
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **inputs}

    def generate(self, messages: Sequence[Any], images: Sequence[np.ndarray], max_new_tokens: int) -> tuple[int, ...]:
        """Greedy tokens of the unpruned prompt."""
        inputs = self.inputs(messages, images)
        output = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True
        )
        for logits in output.logits:
            _check_gap(logits[0])
        return tuple(output.sequences[0, inputs["input_ids"].shape[1] :].tolist())

    def generate_pruned(
        self, messages: Sequence[Any], images: Sequence[np.ndarray], keep_indices: np.ndarray, max_new_tokens: int
    ) -> tuple[int, ...]:
        """Greedy tokens of the prompt with only some visual tokens, without any cache: embeddings and positions are those of
        the whole prompt, and rows are dropped from both."""
        import torch

        inputs = self.inputs(messages, images)
        model, input_ids = self.model.model, inputs["input_ids"]
        with torch.no_grad():
            embeds = model.get_input_embeddings()(input_ids)
            visual = (input_ids[0] == self.model.config.image_token_id).nonzero()[:, 0]
            features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
            embeds[0, visual] = torch.cat(list(features))
            positions, _ = model.get_rope_index(input_ids, inputs["mm_token_type_ids"], inputs["image_grid_thw"])
            following = positions.max() + 1
            stays = torch.ones(input_ids.shape[1], dtype=torch.bool)
            stays[visual] = False
            stays[visual[keep_indices]] = True
            embeds, positions = embeds[:, stays], positions[:, :, stays]
            tokens: list[int] = []
            while len(tokens) < max_new_tokens and (not tokens or tokens[-1] != self.model.generation_config.eos_token_id):
                mask = torch.ones(embeds.shape[:2], dtype=torch.long)
                hidden = model.language_model(inputs_embeds=embeds, position_ids=positions, attention_mask=mask)[0]
                logits = self.model.lm_head(hidden[0, -1])
                _check_gap(logits)
                tokens.append(int(logits.argmax()))
                embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))], dim=1)
                positions = torch.cat([positions, following.expand(3, 1, 1)], dim=2)
                following = following + 1
        return tuple(tokens)


def _check_gap(logits: Any) -> None:
    """Equal tokens mean something only where the likeliest stands out by far more than rounding."""
    best, second = logits.topk(2).values.tolist()
    assert best - second > 1e-3, "the reference is nearly tied: choose another seed"


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        return Reference.open(checkpoint)

"""A tiny random LLaVA-1.5 checkpoint in the published layout: CLIP tower, Llama decoder, one square an image."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from models.scenes.checkpoint import build_tokenizer

IMAGE_SIZE, PATCH_SIZE, GRID_SIZE = 56, 14, 4
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "size": {"shortest_edge": IMAGE_SIZE},
    "do_center_crop": True,
    "image_mean": [0.5, 0.45, 0.5],
    "image_std": [0.5, 0.5, 0.52],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokens() -> Tokenizer:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(["<image>"])
    return tokenizer


def save_tiny(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Three layers of the tower, of which two are read, and two of the decoder; `changes` are keys of the config."""
    tokenizer = build_tokens()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config(tokenizer, changes))
    return save_random(model, tokenizer, folder, CHAT_TEMPLATE, PREPROCESSOR)


def save_random(
    model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, template: str, preprocessor: dict[str, Any]
) -> Path:
    """A checkpoint of a model whose weights are drawn so that its answers vary."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.1)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter *= 4
    model.generation_config.update(do_sample=False, eos_token_id=tokenizer.token_to_id("<|im_end|>"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def _config(tokenizer: Tokenizer, changes: dict[str, Any]) -> LlavaConfig:
    text = {
        "model_type": "llama",
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    image_token = tokenizer.token_to_id("<image>")
    return LlavaConfig(**{"text_config": text, "vision_config": vision, "image_token_index": image_token, **changes})

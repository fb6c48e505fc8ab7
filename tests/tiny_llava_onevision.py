"""A tiny random LLaVA-OneVision checkpoint, with the odd grid and the unseen pixels that the published ones have."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from models.scenes.checkpoint import build_tokenizer
from models.scenes.learners.llava_onevision import CHAT_TEMPLATE
from tests.tiny_llava import save_random

IMAGE_SIZE, PATCH_SIZE, GRID_SIZE = 72, 14, 5
PINPOINTS = [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows, columns in (*product((1, 2, 3), repeat=2), (1, 5), (6, 1))]
PREPROCESSOR = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "image_grid_pinpoints": PINPOINTS,
    "image_mean": [0.5, 0.45, 0.5],
    "image_std": [0.5, 0.5, 0.52],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}


def build_tokens() -> Tokenizer:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(["<image>", "<video>"])
    return tokenizer


def save_tiny(folder: Path, *, tied: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Two layers of either transformer, as transformers 5 saves them; `changes` are keys of the config."""
    tokenizer = build_tokens()
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(_config(tokenizer, tied, changes))
    return save_random(model, tokenizer, folder, CHAT_TEMPLATE, PREPROCESSOR)


def _config(tokenizer: Tokenizer, tied: bool, changes: dict[str, Any]) -> LlavaOnevisionConfig:
    text = {
        "model_type": "qwen2",
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "tie_word_embeddings": tied,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    return LlavaOnevisionConfig(
        **{
            "text_config": text,
            "vision_config": vision,
            "image_token_index": tokenizer.token_to_id("<image>"),
            "video_token_index": tokenizer.token_to_id("<video>"),
            "image_grid_pinpoints": PINPOINTS,
            "vision_aspect_ratio": "anyres_max_4",
            "tie_word_embeddings": tied,
            **changes,
        }
    )

"""Qwen2-VL-2B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from models.scenes.checkpoint import build_tokenizer, write_json
from models.true_shapes.weights import Shapes, shapes_of, write_tokenizer, write_weights


def write_qwen2_vl(folder: Path, layers: int | None, tokenizer: Tokenizer | None = None) -> None:
    """All in one folder, names as published. Without a tokenizer it gets that of the scenes."""
    tokenizer = tokenizer or build_tokenizer()
    config = qwen2_vl_config(tokenizer)
    if layers is not None:
        config["num_hidden_layers"] = config["vision_config"]["depth"] = layers
    write_weights(folder, qwen2_vl_shapes(config))
    write_json(folder / "config.json", config)
    write_tokenizer(folder, tokenizer)


def qwen2_vl_shapes(config: dict[str, Any]) -> Shapes:
    """As published: without transformers' `model.` before the tower's names and `language_model.` in the decoder's."""
    shapes = shapes_of(lambda: Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)))
    renamed = {"model.visual.": "visual.", "model.language_model.": "model."}
    return {_rename(name, renamed): shape for name, shape in shapes.items()}


def _rename(name: str, prefixes: dict[str, str]) -> str:
    old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(old, "") + name.removeprefix(old)


def qwen2_vl_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of Qwen2-VL-2B, but for the ids of the special tokens, which are the tokenizer's."""
    tokens = {
        "eos_token_id": "<|im_end|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_act": "silu",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 32768,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        **{name: tokenizer.token_to_id(token) for name, token in tokens.items()},
    }

"""LLaVA-OneVision-0.5B."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from models.scenes.checkpoint import build_tokenizer, write_json
from models.true_shapes.siglip import SIGLIP
from models.true_shapes.weights import shapes_of, write_tokenizer, write_weights


def write_llava_onevision(folder: Path, layers: int | None) -> None:
    """As transformers writes it."""
    tokenizer = build_tokenizer()
    config = llava_onevision_config(tokenizer)
    if layers is not None:
        config["text_config"]["num_hidden_layers"] = config["vision_config"]["num_hidden_layers"] = layers
    write_weights(folder, shapes_of(lambda: LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**config))))
    write_json(folder / "config.json", config)
    write_tokenizer(folder, tokenizer)


def llava_onevision_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of llava-onevision-qwen2-0.5b-ov, but for the ids of the special tokens, which are the tokenizer's."""
    sides = range(384, 2305, 384)
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_grid_pinpoints": [[height, width] for height in sides for width in sides],
        "image_token_index": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_index": tokenizer.token_to_id("<|video_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "projector_hidden_act": "gelu",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 152000,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        },
        # The last of SigLIP's 27 layers is not used, so the published tower has 26.
        "vision_config": {**SIGLIP, "num_hidden_layers": 26, "vision_use_head": False},
    }

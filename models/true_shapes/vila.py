"""VILA1.5-3b."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from models.scenes.checkpoint import build_tokenizer, write_json
from models.true_shapes.siglip import SIGLIP
from models.true_shapes.weights import shapes_of, write_tokenizer, write_weights


def write_vila(folder: Path, layers: int | None) -> None:
    """A folder for each part."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])  # those of the vicuna_v1 conversation
    llm, tower = vila_llm_config(tokenizer), dict(SIGLIP)
    if layers is not None:
        llm["num_hidden_layers"] = layers
        tower["num_hidden_layers"] = layers + 1  # the last one is not used
    write_weights(folder / "llm", shapes_of(lambda: LlamaForCausalLM(LlamaConfig(**llm))))
    write_json(folder / "llm" / "config.json", llm)
    write_tokenizer(folder / "llm", tokenizer)
    write_weights(folder / "vision_tower", shapes_of(lambda: SiglipVisionModel(SiglipVisionConfig(**tower))))
    write_json(folder / "vision_tower" / "config.json", {"architectures": ["SiglipVisionModel"], **tower})
    width, hidden = 4 * tower["hidden_size"], llm["hidden_size"]
    # LayerNorm, Linear, GELU, Linear, behind the regrouping, which has no weights.
    sizes = {"1.weight": [width], "1.bias": [width], "2.weight": [hidden, width], "2.bias": [hidden]}
    sizes |= {"4.weight": [hidden, hidden], "4.bias": [hidden]}
    write_weights(folder / "mm_projector", {f"layers.{name}": torch.Size(size) for name, size in sizes.items()})
    projector = {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample"}
    write_json(folder / "mm_projector" / "config.json", {"architectures": ["MultimodalProjector"], **projector})
    top = {"llm_cfg": "llm", "vision_tower_cfg": "vision_tower", "mm_projector_cfg": "mm_projector"}
    facts = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "resize"}
    sizes_of = {"hidden_size": hidden, "mm_hidden_size": tower["hidden_size"], "num_video_frames": 8}
    write_json(
        folder / "config.json", {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", **top, **facts, **sizes_of}
    )


def vila_llm_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """llm/config.json of VILA1.5-3b (Sheared-LLaMA 2.7B), but for the ids of the special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": tokenizer.token_to_id("</s>"),
    }

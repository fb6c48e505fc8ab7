"""Exports a checkpoint of a published model's true shape, with random weights, and says what it took.

    python -m benchmarks.export_true_shape FOLDER [--model NAME] [--layers N] [--precision P] [--keep]

`qwen2-vl-2b` needs 14 GB in FOLDER (4.4 GB of bf16 checkpoint, 8.8 GB of float32 bundle), `llava-onevision-0.5b` 6 GB,
`vila1.5-3b` 19 GB.
Both are deleted at the end without --keep.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from foveate.engines import resident_bytes
from foveate.exporter import ExportOptions, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.scorer import NetworkConfig, Scorer, ScorerFacts, write_scorer
from models.scenes.checkpoint import CHAT_TEMPLATE, build_tokenizer

SHARD_BYTES = 1_000_000_000
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "layer_norm_eps": 1e-06,
    "hidden_act": "gelu_pytorch_tanh",
}
"""siglip-so400m-patch14-384."""

Shapes = dict[str, torch.Size]


def write_qwen2_vl(folder: Path, layers: int | None, tokenizer: Tokenizer | None = None) -> None:
    """Qwen2-VL-2B: all in one folder, names as published. Without a tokenizer it gets that of the scenes."""
    tokenizer = tokenizer or build_tokenizer()
    config = qwen2_vl_config(tokenizer)
    if layers is not None:
        config["num_hidden_layers"] = config["vision_config"]["depth"] = layers
    shapes = shapes_of(lambda: Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)))
    renamed = {"model.visual.": "visual.", "model.language_model.": "model."}
    write_weights(folder, {_rename(name, renamed): shape for name, shape in shapes.items()})
    write_config(folder, config)
    write_tokenizer(folder, tokenizer)


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


def write_llava_onevision(folder: Path, layers: int | None) -> None:
    """LLaVA-OneVision-0.5B, as transformers writes it."""
    tokenizer = build_tokenizer()
    config = llava_onevision_config(tokenizer)
    if layers is not None:
        config["text_config"]["num_hidden_layers"] = config["vision_config"]["num_hidden_layers"] = layers
    write_weights(folder, shapes_of(lambda: LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**config))))
    write_config(folder, config)
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


def write_vila(folder: Path, layers: int | None) -> None:
    """VILA1.5-3b: a folder for each part."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])  # those of the vicuna_v1 conversation
    llm, tower = vila_llm_config(tokenizer), dict(SIGLIP)
    if layers is not None:
        llm["num_hidden_layers"] = layers
        tower["num_hidden_layers"] = layers + 1  # the last one is not used
    write_weights(folder / "llm", shapes_of(lambda: LlamaForCausalLM(LlamaConfig(**llm))))
    write_config(folder / "llm", llm)
    write_tokenizer(folder / "llm", tokenizer)
    write_weights(folder / "vision_tower", shapes_of(lambda: SiglipVisionModel(SiglipVisionConfig(**tower))))
    write_config(folder / "vision_tower", {"architectures": ["SiglipVisionModel"], **tower})
    width, hidden = 4 * tower["hidden_size"], llm["hidden_size"]
    # LayerNorm, Linear, GELU, Linear, behind the regrouping, which has no weights.
    sizes = {"1.weight": [width], "1.bias": [width], "2.weight": [hidden, width], "2.bias": [hidden]}
    sizes |= {"4.weight": [hidden, hidden], "4.bias": [hidden]}
    write_weights(folder / "mm_projector", {f"layers.{name}": torch.Size(size) for name, size in sizes.items()})
    projector = {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample"}
    write_config(folder / "mm_projector", {"architectures": ["MultimodalProjector"], **projector})
    top = {"llm_cfg": "llm", "vision_tower_cfg": "vision_tower", "mm_projector_cfg": "mm_projector"}
    facts = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "resize"}
    sizes_of = {"hidden_size": hidden, "mm_hidden_size": tower["hidden_size"], "num_video_frames": 8}
    write_config(folder, {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", **top, **facts, **sizes_of})


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


MODELS: dict[str, Callable[[Path, int | None], None]] = {
    "qwen2-vl-2b": write_qwen2_vl,
    "llava-onevision-0.5b": write_llava_onevision,
    "vila1.5-3b": write_vila,
}


def shapes_of(make: Callable[[], nn.Module]) -> Shapes:
    """Name and shape of every weight, from a model without any; a tied head is the table."""
    with torch.device("meta"):
        model = make()
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _rename(name: str, prefixes: dict[str, str]) -> str:
    old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(old, "") + name.removeprefix(old)


def shards(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    """Consecutive names that together are a little over `SHARD_BYTES` in bf16."""
    names: list[str] = []
    for name in shapes:
        names.append(name)
        if 2 * sum(shapes[name].numel() for name in names) > SHARD_BYTES:
            yield names
            names = []
    if names:
        yield names


def write_weights(folder: Path, shapes: Shapes) -> None:
    """Random bf16 weights, one shard in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards(shapes)):
        file = f"model-{index:05}.safetensors"
        save_file({name: torch.randn(shapes[name], dtype=torch.bfloat16).mul_(0.02) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer of the scenes: a vocabulary as large as the model's would not change the work."""
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_random_scorer(checkpoint: Path) -> Path:
    """The default network with random weights: its work does not depend on them."""
    source = Checkpoint.open(checkpoint)
    heads = read_family(source).decoder.num_attention_heads
    facts = ScorerFacts(1, source.path.name, source.sha256(), heads, NetworkConfig(), {"samples": 0})
    write_scorer(checkpoint / "scorer.safetensors", Scorer(NetworkConfig(), heads), facts)
    return checkpoint / "scorer.safetensors"


def measure_export(checkpoint: Path, bundle: Path, scorer: Path, precision: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of an export in a process of its own."""
    start = time.perf_counter()

    def report(step: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {step}", flush=True)

    export(checkpoint, bundle, ExportOptions(precision, check=False, scorer=scorer), report)
    return time.perf_counter() - start, resident_bytes().peak or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="qwen2-vl-2b")
    parser.add_argument("--layers", type=int, help="layers of the decoder and of the tower, for a quick try")
    parser.add_argument("--precision", default="fp32", help="fp32, int8 or int4")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and bundle in the folder")
    arguments = parser.parse_args()
    checkpoint, bundle = arguments.folder / arguments.model, arguments.folder / f"{arguments.model}.bundle"
    try:
        MODELS[arguments.model](checkpoint, arguments.layers)
        scorer = write_random_scorer(checkpoint)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, peak_bytes = pool.submit(measure_export, checkpoint, bundle, scorer, arguments.precision).result()
        size_bytes = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        print(f"export {seconds:.0f} s, peak resident {peak_bytes / 1e9:.2f} GB, bundle {size_bytes / 1e9:.2f} GB")
    finally:
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)


if __name__ == "__main__":
    main()

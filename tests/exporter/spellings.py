"""Rewrites a saved checkpoint as other tools and versions write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.pipeline import build_graphs
from foveate.exporter.weights import Weight, resolve_weights


def flatten_config(folder: Path) -> None:
    """Rewrites config.json as Qwen2-VL's own checkpoints have it: text keys at the top, theta beside `rope_scaling`."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (folder / "config.json").write_text(json.dumps(text | config))


def shard_weights(folder: Path, rename: dict[str, str]) -> None:
    """Splits the weights in two files with an index, their prefixes replaced."""
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        prefix = next((old for old in rename if name.startswith(old)), "")
        tensors[rename.get(prefix, "") + name.removeprefix(prefix)] = tensor
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change(folder: Path, file: str = "config.json", **values: Any) -> Path:
    """Sets keys of a JSON file of a checkpoint, and leaves out those that are None."""
    content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    content |= values
    (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def weights_of(folder: Path) -> dict[str, Weight]:
    """The weights of every graph of a checkpoint, by their names in the graphs."""
    family = read_family(Checkpoint.open(folder))
    return resolve_weights([graph.module for graph in build_graphs(family)], family.checkpoint, family.checkpoint_keys)

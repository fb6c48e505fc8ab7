"""Checkpoints at true shapes: as many weights as the published ones have, in shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.true_shapes import llava_onevision, qwen2_vl, vila, weights
from models.true_shapes.weights import Shapes, write_weights
from models.true_shapes.write import MODELS

BILLIONS = {"qwen2-vl-2b": 2.209, "llava-onevision-0.5b": 0.894, "vila1.5-3b": 3.148}
"""VILA's with the layer of the tower that is not read."""


@pytest.mark.parametrize("name", MODELS)
def test_there_are_as_many_weights_as_published(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def count(folder: Path, shapes: Shapes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        counts.append(sum(shape.numel() for shape in shapes.values()))

    for module in (qwen2_vl, llava_onevision, vila):
        monkeypatch.setattr(module, "write_weights", count)
    MODELS[name](tmp_path, None)
    assert sum(counts) / 1e9 == pytest.approx(BILLIONS[name], abs=5e-4)


def test_weights_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 100)
    shapes = {"a": torch.Size([40]), "b": torch.Size([4, 5]), "c": torch.Size([3])}
    write_weights(tmp_path, shapes)
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert list(where) == list(shapes)
    assert len(set(where.values())) == 2
    for name, file in where.items():
        assert load_file(tmp_path / file)[name].shape == shapes[name]
        assert load_file(tmp_path / file)[name].dtype == torch.bfloat16

"""What is wrong with a checkpoint is said in one line, before anything is written."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.engines import BundleError, ExportError, OptionError
from foveate.exporter import ExportOptions, export
from foveate.exporter.checkpoint import Checkpoint

WEIGHTS = "model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def cut(path: Path, size_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:size_bytes])


def pickles_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def missing_tensor(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))


def wrong_shape(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4)}))


def integer_weights(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(128, dtype=torch.int8)}))


def gap_at_the_end(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))


def shard_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../w.safetensors"}}))


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-2.safetensors"}}))


def text_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config=config["text_config"] | changes)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "expected an object"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no model type": (lambda folder: edit_json(folder / "config.json", model_type=None), "has no 'model_type'"),
    "unknown model type": (
        lambda folder: edit_json(folder / "config.json", model_type="qwen2_5_vl"),
        " The closest is 'qwen2_vl'",
    ),
    "config without vision": (lambda folder: edit_json(folder / "config.json", vision_config=None), "`vision_config`"),
    "size is no number": (lambda folder: text_config(folder, hidden_size="wide"), "Expected `int`, got `str`"),
    "no rope": (lambda folder: text_config(folder, rope_parameters=None), "neither 'rope_parameters' nor 'rope_scaling'"),
    "sliding window": (lambda folder: text_config(folder, use_sliding_window=True), "use_sliding_window is True"),
    "yarn": (
        lambda folder: text_config(
            folder, rope_parameters={"rope_type": "yarn", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
        ),
        "rope type is 'yarn'",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "Download the checkpoint again, with its safetensors"),
    "pickles only": (pickles_only, "reads no pickled weights: save the model again"),
    "weights without header": (lambda folder: cut(folder / WEIGHTS, 5), "header does not fit in its 5 bytes"),
    "weights cut off": (lambda folder: cut(folder / WEIGHTS, 100_000), "is cut off or damaged"),
    "weights are text": (
        lambda folder: (folder / WEIGHTS).write_text("version https://example.org"),
        "not a whole safetensors",
    ),
    "offsets disagree with the shape": (gap_at_the_end, "tensor 'w'"),
    "missing tensor": (
        missing_tensor,
        "has no tensor 'model.norm.weight or model.language_model.norm.weight' in model.safetensors",
    ),
    "wrong shape": (wrong_shape, "has shape [3, 4], config.json wants [384, 128]"),
    "quantised tensor": (integer_weights, "is I8, expected one of"),
    "shard outside": (shard_outside, "leaves the checkpoint"),
    "shard missing": (shard_missing, "has no model-2.safetensors"),
    "no chat template": (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
    "no such token": (lambda folder: edit_json(folder / "config.json", image_token_id=7), "has no added token 7"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoint(case: str, checkpoint_copy: Path, tmp_path: Path) -> None:
    damage, message = BROKEN[case]
    damage(checkpoint_copy)
    with pytest.raises(ExportError) as caught:
        export(checkpoint_copy, tmp_path / "out" / "x.bundle")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a folder"):
        export(tmp_path / "nowhere", tmp_path / "x.bundle")


def test_unsupported_precision(checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"precision 'fp8' is not one of a bundle, choose one of fp32, int8, int4"):
        export(checkpoint_folder, tmp_path / "x.bundle", ExportOptions(precision="fp8"))


def test_output_exists(checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists already"):
        export(checkpoint_folder, tmp_path)


def test_chat_template_from_each_of_its_places(checkpoint_copy: Path) -> None:
    template = (checkpoint_copy / "chat_template.jinja").read_text()
    (checkpoint_copy / "chat_template.jinja").unlink()
    edit_json(checkpoint_copy / "tokenizer_config.json", chat_template=template)
    assert Checkpoint.open(checkpoint_copy).chat_template() == template
    (checkpoint_copy / "chat_template.json").write_text(json.dumps({"chat_template": "newer"}))
    assert Checkpoint.open(checkpoint_copy).chat_template() == "newer"


def test_hash_follows_the_weights(checkpoint_copy: Path) -> None:
    before = Checkpoint.open(checkpoint_copy).sha256()
    assert Checkpoint.open(checkpoint_copy).sha256() == before
    edit_weights(checkpoint_copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert Checkpoint.open(checkpoint_copy).sha256() != before


def test_tokens_that_a_template_may_name(checkpoint_copy: Path) -> None:
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "<|endoftext|>"}
    (checkpoint_copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert Checkpoint.open(checkpoint_copy).template_tokens() == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (checkpoint_copy / "tokenizer_config.json").unlink()
    assert Checkpoint.open(checkpoint_copy).template_tokens() == {}

"""What is wrong with a checkpoint is said in one line, before anything is written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ProcessorMixin, Qwen2VLForConditionalGeneration

from foveate.engines import BundleError, ExportError, OptionError
from foveate.exporter import ExportOptions, export
from foveate.exporter.checkpoint import Checkpoint
from tests.exporter.spellings import shard_weights, weights_of

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


def several_pickles(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model-1.bin")
    (folder / "pytorch_model-2.bin").touch()


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
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../w.safetensors"}}))


def shard_missing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-2.safetensors"}}))


def text_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config=config["text_config"] | changes)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def packed_weights(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    edit_weights(folder, lambda tensors: tensors.update({f"{name}.qweight": tensors.pop(f"{name}.weight").to(torch.int32)}))


def bias_without_place(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.o_proj.bias": torch.zeros(128)}))


def adapter_in_the_weights(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 128)}))


def another_layer(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.2.input_layernorm.weight": torch.zeros(128)}))


def head_of_its_own(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))


def tensor_in_two_files(folder: Path) -> None:
    shard_weights(folder, rename={})
    shutil.copyfile(folder / "model-1-of-2.safetensors", folder / "model-2-of-2.safetensors")


def nested_json(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


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
    "config without vision": (
        lambda folder: edit_json(folder / "config.json", vision_config=None),
        "vision_config.hidden_size is 3584, supported is 128",
    ),
    "size is no number": (lambda folder: text_config(folder, hidden_size="wide"), "Expected `int`, got `str`"),
    "no rope": (lambda folder: text_config(folder, rope_parameters=None), "sum of mrope_section is 64, supported is 16 only"),
    "sliding window": (lambda folder: text_config(folder, use_sliding_window=True), "use_sliding_window is True"),
    "yarn": (
        lambda folder: text_config(
            folder, rope_parameters={"rope_type": "yarn", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
        ),
        "rope type is 'yarn'",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "Download the checkpoint again, with its safetensors"),
    "pickles only": (pickles_only, "reads no pickled weights. Write safetensors of them: python -c"),
    "several pickles": (several_pickles, "reads no pickled weights: save the model again"),
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
    "quantised tensor": (integer_weights, "is I8, expected floats. Export the checkpoint that it was quantised from"),
    "shard outside": (shard_outside, "leaves the checkpoint"),
    "shard missing": (shard_missing, "has no model-2.safetensors"),
    "adapter": (adapter, "has an adapter, adapter_config.json, which an export would leave out. Move its files"),
    "packed weights": (
        packed_weights,
        "has 'model.layers.0.mlp.up_proj.qweight' in place of 'model.layers.0.mlp.up_proj.weight'",
    ),
    "bias without a place": (bias_without_place, "tensor 'model.layers.0.self_attn.o_proj.bias' of"),
    "adapter in the weights": (adapter_in_the_weights, "tensor 'model.layers.0.self_attn.q_proj.lora_A.weight' of"),
    "more layers than the config has": (another_layer, "tensor 'model.layers.2.input_layernorm.weight' of"),
    "head of its own": (head_of_its_own, "is not 'model.embed_tokens.weight', which the config says it is"),
    "tensor in two files": (tensor_in_two_files, "model-1-of-2.safetensors and in"),
    "nested too deep": (nested_json, "config.json is not JSON"),
    "heads that no attention runs": (
        lambda folder: text_config(folder, num_attention_heads=32, num_key_value_heads=2),
        "is 4, supported are multiples of 8 only",
    ),
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


def test_the_single_file_wins_over_a_stale_index(checkpoint_copy: Path) -> None:
    """As in transformers."""
    expected = Checkpoint.open(checkpoint_copy).tensors
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-2.safetensors"}}))
    assert Checkpoint.open(checkpoint_copy).tensors == expected
    assert Qwen2VLForConditionalGeneration.from_pretrained(checkpoint_copy).num_parameters() > 0


def test_tensors_that_no_graph_uses_may_have_any_type(checkpoint_copy: Path) -> None:
    expected = weights_of(checkpoint_copy).keys()
    unused = {
        "model.visual.rotary_pos_emb.inv_freq": torch.zeros(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(3, dtype=torch.bool),
        "model.embed_tokens.position_ids": torch.arange(3),
        "model.norm.num_batches_tracked": torch.ones(1, dtype=torch.int32),
        "fp8": torch.zeros(2).to(torch.float8_e4m3fn),
    }
    edit_weights(checkpoint_copy, lambda tensors: tensors.update(unused))
    assert weights_of(checkpoint_copy).keys() == expected


def test_a_head_that_is_the_table_may_stand_there_or_alone(checkpoint_copy: Path) -> None:
    """transformers ties either to the other."""
    key = "language_model.embed_tokens.weight"
    expected = next(weights_of(checkpoint_copy)[key].chunks())
    edit_weights(
        checkpoint_copy, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    assert weights_of(checkpoint_copy)[key].source.name == "model.embed_tokens.weight"
    edit_weights(checkpoint_copy, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert torch.equal(next(weights_of(checkpoint_copy)[key].chunks()), expected)


def test_links_of_a_cache_are_followed(checkpoint_copy: Path, tmp_path: Path) -> None:
    """A Hugging Face cache has files in `blobs`, and links to them in `snapshots`."""
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(checkpoint_copy.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert Checkpoint.open(snapshot).sha256() == Checkpoint.open(checkpoint_copy).sha256()
    assert weights_of(snapshot).keys() == weights_of(checkpoint_copy).keys()


def test_keys_that_end_like_parts_of_vila_are_none(checkpoint_copy: Path) -> None:
    edit_json(checkpoint_copy / "config.json", train_cfg={"lr": 0.001}, data_cfg="data")
    assert Checkpoint.open(checkpoint_copy).parts == ()


def test_the_command_for_pickles_works(checkpoint_copy: Path) -> None:
    expected = load_file(checkpoint_copy / WEIGHTS)
    torch.save(expected, checkpoint_copy / "pytorch_model.bin")
    (checkpoint_copy / WEIGHTS).unlink()
    with pytest.raises(ExportError) as caught:
        Checkpoint.open(checkpoint_copy)
    subprocess.run(str(caught.value).partition("of them: ")[2].replace("python", sys.executable, 1), shell=True, check=True)
    got = load_file(checkpoint_copy / WEIGHTS)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    Checkpoint.open(checkpoint_copy)


def test_chat_template_from_each_of_its_places(checkpoint_copy: Path) -> None:
    template = (checkpoint_copy / "chat_template.jinja").read_text()
    (checkpoint_copy / "chat_template.jinja").unlink()
    edit_json(checkpoint_copy / "tokenizer_config.json", chat_template=template)
    assert Checkpoint.open(checkpoint_copy).chat_template() == template
    (checkpoint_copy / "chat_template.json").write_text(json.dumps({"chat_template": "newer"}))
    assert Checkpoint.open(checkpoint_copy).chat_template() == "newer"


def of_transformers(folder: Path) -> str:
    """The template of transformers' processor; its tokenizer's, where that has none."""
    template = ProcessorMixin.get_processor_dict(folder)[0].get("chat_template")
    if template is None:
        template = AutoTokenizer.from_pretrained(folder).chat_template
    return str(template["default"] if isinstance(template, dict) else template)


@pytest.mark.filterwarnings("ignore")  # transformers leaves files open
def test_chat_templates_go_in_the_order_of_transformers(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "chat_template.jinja").unlink()
    named = [{"name": name, "template": f"{name} of the tokenizer"} for name in ("tool_use", "default")]
    edit_json(checkpoint_copy / "tokenizer_config.json", chat_template=named)
    found = [Checkpoint.open(checkpoint_copy).chat_template()]
    assert found[-1] == of_transformers(checkpoint_copy)
    more = checkpoint_copy / "additional_chat_templates"
    more.mkdir()
    for name in ("rag", "default"):
        (more / f"{name}.jinja").write_text(f"{name} of the folder")
        if name == "default":
            found.append(Checkpoint.open(checkpoint_copy).chat_template())
            assert found[-1] == of_transformers(checkpoint_copy)
    (checkpoint_copy / "chat_template.jinja").write_text("file")
    found.append(Checkpoint.open(checkpoint_copy).chat_template())
    assert found[-1] == of_transformers(checkpoint_copy)
    shutil.rmtree(more)
    (checkpoint_copy / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    found.append(Checkpoint.open(checkpoint_copy).chat_template())
    assert found[-1] == of_transformers(checkpoint_copy)
    (checkpoint_copy / "processor_config.json").write_text(json.dumps({"chat_template": "processor"}))
    found.append(Checkpoint.open(checkpoint_copy).chat_template())
    assert found[-1] == of_transformers(checkpoint_copy)
    assert found == ["default of the tokenizer", "default of the folder", "file", "json", "processor"]


def several_without_default(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": "a"} for name in ("tool_use", "rag")]
    edit_json(folder / "tokenizer_config.json", chat_template=named)


def more_without_default(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("a")


def json_and_more(folder: Path) -> None:
    more_without_default(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "a"}))


def not_utf_8(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("é".encode("latin-1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            several_without_default,
            r"several chat templates \(rag, tool_use\) and none is named 'default'. Write the one",
        ),
        (more_without_default, r"additional_chat_templates has several chat templates \(rag\) and none is named 'default'"),
        (json_and_more, r"both chat_template.json and additional_chat_templates, of which transformers takes neither"),
        (not_utf_8, r"chat_template.jinja is not UTF-8"),
    ],
)
def test_chat_templates_without_a_clear_one_are_refused(checkpoint_copy: Path, change: Any, message: str) -> None:
    change(checkpoint_copy)
    with pytest.raises(ExportError, match=message):
        Checkpoint.open(checkpoint_copy).chat_template()


def test_the_tokenizer_is_that_of_transformers(checkpoint_copy: Path) -> None:
    """With what tokenizer_config.json adds to it, and without the limits of training."""
    edit_json(
        checkpoint_copy / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0},
    )
    added = {"489": {"content": "<new>", "special": True}}
    for add_bos_token in (True, False):
        edit_json(
            checkpoint_copy / "tokenizer_config.json",
            bos_token="<|im_start|>",
            add_bos_token=add_bos_token,
            add_eos_token=True,
            added_tokens_decoder=added,
        )
        text = "is it red? <new>" * 5
        tokenizer = Checkpoint.open(checkpoint_copy).load_tokenizer()
        assert tokenizer.encode(text).ids == AutoTokenizer.from_pretrained(checkpoint_copy)(text)["input_ids"]
        assert "<new>" in tokenizer.encode(text).tokens
        assert tokenizer.truncation is None


def test_hash_follows_the_weights(checkpoint_copy: Path) -> None:
    before = Checkpoint.open(checkpoint_copy).sha256()
    assert Checkpoint.open(checkpoint_copy).sha256() == before
    edit_weights(checkpoint_copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert Checkpoint.open(checkpoint_copy).sha256() != before


def test_tokens_that_a_template_may_name(checkpoint_copy: Path) -> None:
    record = {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False}
    config = {"bos_token": None, "eos_token": record, "pad_token": "<|endoftext|>", "unk_token": None}
    config |= {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<|image_pad|>"}}
    (checkpoint_copy / "tokenizer_config.json").write_text(json.dumps(config))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "image_token": "<|image_pad|>"}
    assert Checkpoint.open(checkpoint_copy).template_tokens() == named
    (checkpoint_copy / "tokenizer_config.json").unlink()  # then the class of the family has its defaults
    defaults = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    assert Checkpoint.open(checkpoint_copy).template_tokens() == defaults
    (checkpoint_copy / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    with pytest.raises(ExportError, match=r"transformers can't load the tokenizer of .*eos_token has to be either str"):
        Checkpoint.open(checkpoint_copy).template_tokens()

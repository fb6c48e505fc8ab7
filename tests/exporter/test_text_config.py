"""Text configs of Llama and Qwen2 in every spelling, and their decoders against transformers' models."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from foveate.engines import ExportError
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.modules import RopeScaling, Rotary
from foveate.exporter.text_config import read_decoder
from models.scenes.checkpoint import build_tokenizer
from tests.exporter.text_only import DECODERS, TextAnswers, export_text

FILE = Path("config.json")
LLAMA_3_1 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SIZES = {
    "vocab_size": 480,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "eos_token_id": 3,
}
# A short original context, so that a prompt of a few tokens feels every part of the scaling.
SHORT = {"rope_type": "llama3", "rope_theta": 1e4} | LLAMA_3_1 | {"original_max_position_embeddings": 16}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "llama3": LlamaConfig(**SIZES | {"num_key_value_heads": 1}, head_dim=32, rope_parameters=SHORT),
    "no groups": LlamaConfig(**SIZES | {"num_key_value_heads": 4}, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "qwen2": Qwen2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}


def saved(config: Any) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def older(values: dict[str, Any]) -> dict[str, Any]:
    """The same before transformers 5."""
    values = dict(values)
    rope = dict(values.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    return values | {"rope_theta": theta, "rope_scaling": None if rope["rope_type"] == "default" else rope}


def oldest(values: dict[str, Any]) -> dict[str, Any]:
    """The same where the kind of scaling was its `type`, and an equal number of heads was left out."""
    values = older(values)
    if values["rope_scaling"]:
        values["rope_scaling"]["type"] = values["rope_scaling"].pop("rope_type")
    return values


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("spelling", [saved, lambda config: older(saved(config)), lambda config: oldest(saved(config))])
def test_every_spelling_gives_what_transformers_reads(name: str, spelling: Any) -> None:
    config = CONFIGS[name]
    decoder = read_decoder(spelling(config), FILE)
    for field in SIZES.keys() & DecoderConfig.__dataclass_fields__.keys() | {"tie_word_embeddings"}:
        assert getattr(decoder, field) == getattr(config, field), field
    assert decoder.rope_theta == config.rope_parameters["rope_theta"]
    assert decoder.head_dim == getattr(config, "head_dim", 16)
    assert decoder.qkv_bias == (name == "qwen2")
    assert decoder.position_axes == 1
    scaled = RopeScaling(8.0, 1.0, 4.0, 16) if name == "llama3" else None
    assert decoder.rope_scaling == scaled


def test_keys_that_may_be_missing() -> None:
    values = older(saved(CONFIGS["llama"]))
    for name in ("num_key_value_heads", "head_dim", "rope_scaling", "hidden_act", "tie_word_embeddings", "attention_bias"):
        del values[name]
    decoder = read_decoder(values, FILE)
    assert (decoder.num_key_value_heads, decoder.head_dim, decoder.tie_word_embeddings) == (4, 16, False)
    assert read_decoder(values, FILE, tied=True).tie_word_embeddings


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
def test_a_config_of_defaults_reads_as_transformers_has_it(kind: type[LlamaConfig | Qwen2Config]) -> None:
    decoder, config = read_decoder({"model_type": kind.model_type}, FILE), kind()
    for name in DecoderConfig.__dataclass_fields__.keys() & set(config.to_dict()):
        assert getattr(decoder, name) == getattr(config, name), name
    assert decoder.rope_theta == config.rope_parameters["rope_theta"]


def test_the_older_spelling_of_rope_wins() -> None:
    """As in transformers, where a file has both."""
    values = {"model_type": "llama", "rope_parameters": SHORT, "rope_scaling": {"rope_type": "default", "rope_theta": 5.0}}
    assert LlamaConfig(**values).rope_parameters["rope_theta"] == read_decoder(values, FILE).rope_theta == 5.0


def test_llama3_scaling_without_its_first_context() -> None:
    rope = {name: value for name, value in SHORT.items() if name != "original_max_position_embeddings"}
    values = {"model_type": "llama", "max_position_embeddings": 64, "rope_parameters": rope}
    expected = LlamaConfig(**values).rope_parameters["original_max_position_embeddings"]
    assert read_decoder(values, FILE).rope_scaling == RopeScaling(8.0, 1.0, 4.0, expected)
    assert not read_decoder(saved(CONFIGS["llama"]), FILE, tied=False).tie_word_embeddings


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("original", [16, 8192])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_llama3_scaling_is_that_of_transformers(size: int, original: int, theta: float) -> None:
    scaling = LLAMA_3_1 | {"original_max_position_embeddings": original}
    rope = {"rope_type": "llama3", "rope_theta": theta} | scaling
    config = LlamaConfig(**SIZES, head_dim=size, rope_parameters=rope)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    got = Rotary(size, theta, RopeScaling(**scaling)).inv_freq
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert attention_factor == 1
    assert not torch.allclose(got, Rotary(size, theta).inv_freq)


def test_llama3_scaling_of_known_wavelengths() -> None:
    """By hand: short ones stay, long ones are 8 times longer, one half-way (in turns per context) gets the mean."""
    turns = torch.tensor([10.0, 4.0, 2.5, 1.0, 0.1])
    got = RopeScaling(**LLAMA_3_1)(turns * 2 * math.pi / 8192) * 8192 / (2 * math.pi)  # type: ignore[arg-type]
    torch.testing.assert_close(got, turns * torch.tensor([1, 1, (1 + 1 / 8) / 2, 1 / 8, 1 / 8]))


LLAMA, QWEN2 = older(saved(CONFIGS["llama"])), older(saved(CONFIGS["qwen2"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (QWEN2 | {"use_sliding_window": True}, "use_sliding_window is True, supported is False only"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias is True, supported is False only"),
        (LLAMA | {"attention_bias": True}, "attention_bias is True, supported is False only"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act is 'gelu', supported is 'silu' only"),
        (LLAMA | {"model_type": "mistral"}, "model_type is 'mistral', supported is 'qwen2' or 'llama' only"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn', supported is 'default' or 'llama3' only"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type is 'linear'"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type is 'dynamic'"),
        (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope type 'llama3' lacks a factor"),
        (LLAMA | {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        (LLAMA | {"sliding_window": 128}, "sliding_window is 128, supported is a checkpoint without it only"),
        (
            QWEN2 | {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is ['full_attention', 'sliding_attention']",
        ),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "Export the checkpoint that it was quantised from"),
        (LLAMA | {"per_layer_config": {"0": {"hidden_act": "relu"}}}, "per_layer_config is {'0'"),
        (LLAMA | {"hidden_size": "64"}, "Expected `int`, got `str` - at `$.hidden_size`"),
        (LLAMA | {"num_hidden_layers": 0}, "Expected `int` >= 1 - at `$.num_hidden_layers`"),
        (LLAMA | {"num_attention_heads": 3, "head_dim": None}, "hidden_size is 64, expected a multiple of num_attention_heads"),
        (
            LLAMA | {"num_key_value_heads": 3},
            "num_attention_heads is 4, expected a multiple of num_key_value_heads, which is 3",
        ),
        (LLAMA | {"head_dim": 20}, "is 20, supported are multiples of 8 only, because ONNX Runtime's attention"),
        (LLAMA | {"head_dim": None, "hidden_size": 48}, "is 12, supported are multiples of 8 only"),
    ],
)
def test_what_the_decoder_does_not_do_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as refused:
        read_decoder(values, FILE)
    line = str(refused.value)
    assert line.startswith("config.json")
    assert message in line
    assert "\n" not in line
    remedies = ("Use another checkpoint.", "Use the file that belongs to the weights.", "quantises by itself.")
    assert line.endswith(remedies)


@dataclass(frozen=True)
class Case:
    """A random model in transformers, and its two decoders on ONNX Runtime."""

    expected: Any
    answers: dict[str, TextAnswers]


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # transformers starts them at 1 and 0, which would hide a mix-up
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder / "checkpoint")
    build_tokenizer().save(str(folder / "checkpoint" / "tokenizer.json"))
    bundle = export_text(folder / "checkpoint", folder / "text.bundle")
    return Case(model, {name: TextAnswers.open(bundle, name, folder / "checkpoint") for name in DECODERS})


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("lengths", [(1,), (23,), (40, 1, 17)])
def test_logits_are_those_of_transformers(case: Case, decoder: str, lengths: tuple[int, ...]) -> None:
    steps = 5
    sequences = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (len(lengths), max(lengths) + steps))
    got = case.answers[decoder].logits(sequences, lengths, steps)
    with torch.no_grad():
        expected = case.expected(torch.from_numpy(sequences)).logits.numpy()
    for row, length in enumerate(lengths):
        wanted = expected[row, length - 1 : length + steps]
        np.testing.assert_allclose(got[:, row], wanted, atol=1e-4 * max(1, np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_tokens_are_those_of_transformers(case: Case, decoder: str) -> None:
    random = np.random.default_rng(1)
    prompts = [random.integers(4, SIZES["vocab_size"], length).tolist() for length in (9, 1, 30, 14)]
    rows = case.answers[decoder].generate(prompts, 40, (3,))
    for prompt, row in zip(prompts, rows, strict=True):
        expected = case.expected.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)
        assert row.tokens == expected[0, len(prompt) :].tolist()
    assert len({token for row in rows for token in row.tokens}) > 10  # an answer that repeats one token would prove little

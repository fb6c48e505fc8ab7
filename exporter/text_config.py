"""The text part of config.json for decoders of the Llama and Qwen2 kind: what the decoder needs of it, and what it can't do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from foveate.engines import ExportError
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.modules import RopeScaling

_T = TypeVar("_T")
_BIASED = {"qwen2": True, "llama": False}
"""`model_type` -> whether query, key and value have a bias. Llama's `attention_bias` gives the output projection one too."""


class _Rope(msgspec.Struct, frozen=True):
    """`rope_parameters` (transformers 5) or `rope_scaling` (before, where theta stood beside it)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


class _Text(msgspec.Struct, frozen=True):
    """What the decoder needs."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    hidden_act: str = "silu"
    use_sliding_window: bool | None = False
    attention_bias: bool | None = None
    mlp_bias: bool | None = False
    tie_word_embeddings: bool = False


def read_decoder(text: Mapping[str, Any], where: Path, tied: bool | None = None) -> DecoderConfig:
    """The decoder of a text config of model type `qwen2` or `llama`.

    Args:
        text: the config.
        where: its file, for errors.
        tied: whether the head is the table; None takes the config's word.

    Raises:
        ExportError: a key is missing, or asks for what the decoder does not do.
    """
    config = convert(text, _Text, where)
    rope = config.rope_parameters or config.rope_scaling or _Rope()
    theta = rope.rope_theta or config.rope_theta
    kind = rope.rope_type or rope.type
    check_supported(where, "model_type", config.model_type, tuple(_BIASED))
    check_supported(where, "hidden_act", config.hidden_act, ("silu",))
    check_supported(where, "use_sliding_window", config.use_sliding_window, (None, False))
    check_supported(where, "mlp_bias", config.mlp_bias, (None, False))
    check_supported(where, "rope type", kind, (None, "llama3", "default"))
    if config.model_type == "llama":
        check_supported(where, "attention_bias", config.attention_bias, (None, False))
    if theta is None:
        raise ExportError(f"{where} has no 'rope_theta'. Use the file that belongs to the weights.")
    return DecoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=theta,
        max_position_embeddings=config.max_position_embeddings,
        rope_scaling=_scaling(rope, where) if kind == "llama3" else None,
        qkv_bias=_BIASED[config.model_type],
        tie_word_embeddings=config.tie_word_embeddings if tied is None else tied,
    )


def _scaling(rope: _Rope, where: Path) -> RopeScaling:
    values = (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings)
    if None in values:
        raise ExportError(f"{where}: rope type 'llama3' lacks a factor. Use the file that belongs to the weights.")
    return RopeScaling(*values)  # type: ignore[arg-type]


def convert(values: Mapping[str, Any], kind: type[_T], where: Path) -> _T:
    """Reads the keys that `kind` knows; others are ignored.

    Raises:
        ExportError: a key is missing or has another type.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ExportError(f"{where}: {error}. Use the file that belongs to the weights.") from error


def check_supported(where: Path, what: str, value: object, supported: tuple[object, ...]) -> None:
    """Refuses what the decoder does not do.

    Raises:
        ExportError: `value` is none of `supported`; None among them stands for a key that is not there.
    """
    if value not in supported:
        known = " or ".join(repr(one) for one in supported if one is not None)
        raise ExportError(f"{where}: {what} is {value!r}, supported is {known} only. Use another checkpoint.")

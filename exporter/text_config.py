"""Text configs of the Llama and Qwen2 kind: the decoder that they describe, and what it can't do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from foveate.engines import ExportError
from foveate.exporter.config import (
    BELONGING,
    Config,
    Layers,
    ModelConfig,
    Only,
    Positive,
    because,
    check_multiple,
    check_supported,
)
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.modules import RopeScaling

_HEAD_MULTIPLE = 8
"""ONNX Runtime's GroupQueryAttention refuses to run with heads whose size is no multiple of it."""


class Rope(Config, frozen=True):
    """`rope_parameters` (transformers 5) or `rope_scaling` (before, where theta stood beside it)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    mrope_section: tuple[Positive, ...] | None = None

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "partial_rotary_factor": (None, 1),
        "full_attention": (None,),
        "sliding_attention": (None,),
    }
    ignored: ClassVar[Mapping[str, str]] = because(
        "of kinds of scaling that are refused",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "short_factor",
        "long_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    )

    @property
    def kind(self) -> str:
        return self.rope_type or self.type or "default"


class TextConfig(ModelConfig, frozen=True):
    """What the decoder needs, and what it can't do; defaults are those of the classes derived from it."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Layers
    num_attention_heads: Positive
    max_position_embeddings: Positive
    rms_norm_eps: float
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: str = "silu"
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_theta: float | None = None
    tie_word_embeddings: bool = False
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "hidden_act": ("silu",),
        "use_sliding_window": (None, False),
        "layer_types": Only(("full_attention",)),
        "partial_rotary_factor": (None, 1),
        "original_max_position_embeddings": (None,),
    }
    ignored: ClassVar[Mapping[str, str]] = (
        because("of training", "initializer_range", "attention_dropout")
        | because("how it is computed, not what", "use_cache")
        | because("the template and the tokenizer say how a prompt begins", "bos_token_id")
    )
    default_theta: ClassVar[float] = 10000.0
    rope_kinds: ClassVar[tuple[str, ...]] = ("default", "llama3")
    qkv_bias: ClassVar[bool]

    def decoder(self, where: Path, part: str = "", tied: bool | None = None) -> DecoderConfig:
        """The decoder.

        Args:
            where: as in `read`.
            part: as in `read`.
            tied: whether the head is the table; None takes this config's word.

        Raises:
            ExportError: sizes contradict each other, or the decoder can't be rotated or run as the config wants.
        """
        rope = self.rope(where, part)
        return DecoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=rope.rope_theta or self.rope_theta or self.default_theta,
            max_position_embeddings=self.max_position_embeddings,
            mrope_section=self.mrope_section(rope, where, part),
            rope_scaling=self._scaling(rope, where) if rope.kind == "llama3" else None,
            qkv_bias=self.qkv_bias,
            tie_word_embeddings=self.tie_word_embeddings if tied is None else tied,
        )

    def rope(self, where: Path, part: str) -> Rope:
        """How positions are rotated; the older of the two spellings wins, as in transformers."""
        key = "rope_scaling" if self.rope_scaling else "rope_parameters"
        rope = Rope.read(self.rope_scaling or self.rope_parameters or {}, where, f"{part}{key}.")
        check_supported(where, f"{part}{key}: rope type", rope.kind, self.rope_kinds)
        return rope

    def check_token(self, where: Path, key: str, token_id: int) -> None:
        """Refuses a token of the config that the table has no row for."""
        if not 0 <= token_id < self.vocab_size:
            raise ExportError(
                f"{where}: {key} is {token_id}, the table of the text model has {self.vocab_size} rows. {BELONGING}"
            )

    def mrope_section(self, rope: Rope, where: Path, part: str) -> tuple[int, ...] | None:
        """The frequencies of each position axis; None where there is one axis."""
        return None

    def check(self, where: Path, part: str) -> None:
        heads = self.num_attention_heads
        if self.head_dim is None:
            check_multiple(where, f"{part}hidden_size", self.hidden_size, "num_attention_heads", heads)
        check_multiple(where, f"{part}num_attention_heads", heads, "num_key_value_heads", self.num_key_value_heads or heads)
        head_dim = self.head_dim or self.hidden_size // heads
        if head_dim % _HEAD_MULTIPLE:
            raise ExportError(
                f"{where}: {part}head_dim, or hidden_size / num_attention_heads, is {head_dim}, supported are multiples of "
                f"{_HEAD_MULTIPLE} only, because ONNX Runtime's attention runs no others. Use another checkpoint."
            )

    def _scaling(self, rope: Rope, where: Path) -> RopeScaling:
        context = rope.original_max_position_embeddings or self.max_position_embeddings
        values = (rope.factor, rope.low_freq_factor, rope.high_freq_factor)
        if None in values:
            raise ExportError(f"{where}: rope type 'llama3' lacks a factor. {BELONGING}")
        return RopeScaling(*values, context)  # type: ignore[arg-type]


class LlamaConfig(TextConfig, frozen=True):
    """Defaults as in transformers' LlamaConfig."""

    vocab_size: Positive = 32000
    hidden_size: Positive = 4096
    intermediate_size: Positive = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Positive = 32
    max_position_embeddings: Positive = 2048
    rms_norm_eps: float = 1e-6
    eos_token_id: int | tuple[int, ...] | None = 2

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "attention_bias": (None, False),  # the output projection would have one too
        "mlp_bias": (None, False),
        "sliding_window": (None,),
    }
    ignored: ClassVar[Mapping[str, str]] = because("in how many parts a product was computed", "pretraining_tp")
    qkv_bias: ClassVar[bool] = False


class Qwen2Config(TextConfig, frozen=True):
    """Defaults as in transformers' Qwen2Config."""

    vocab_size: Positive = 151936
    hidden_size: Positive = 4096
    intermediate_size: Positive = 22016
    num_hidden_layers: Layers = 32
    num_attention_heads: Positive = 32
    num_key_value_heads: Positive | None = 32
    max_position_embeddings: Positive = 32768
    rms_norm_eps: float = 1e-6

    ignored: ClassVar[Mapping[str, str]] = because("windows are refused", "sliding_window", "max_window_layers")
    qkv_bias: ClassVar[bool] = True


TEXT_CONFIGS: dict[str, type[TextConfig]] = {"qwen2": Qwen2Config, "llama": LlamaConfig}
"""`model_type` -> class."""


def read_text_config(values: Mapping[str, Any], where: Path, part: str = "") -> TextConfig:
    """A text config of model type `qwen2` or `llama`; `where` and `part` as in `Config.read`.

    Raises:
        ExportError: a key has another type, or asks for what the decoder does not do.
    """
    model_type = values.get("model_type")
    check_supported(where, f"{part}model_type", model_type, tuple(TEXT_CONFIGS))
    return TEXT_CONFIGS[str(model_type)].read(values, where, part)


def read_decoder(values: Mapping[str, Any], where: Path, tied: bool | None = None) -> DecoderConfig:
    """The decoder of a text config; see `read_text_config` and `TextConfig.decoder`."""
    return read_text_config(values, where).decoder(where, tied=tied)

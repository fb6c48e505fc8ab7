"""The text decoder: one description for every family, lowered once per kind of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from foveate.engines import DecoderEntry
from foveate.exporter.modules import Linear, RMSNorm, RopeScaling, Rotary, empty, rotate

OPSET = 24
"""The first opset with `TensorScatter`; `Attention` and `RMSNormalization` came with 23."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and flags of a decoder of the Llama and Qwen kind: RMSNorm, GQA, RoPE or M-RoPE, SwiGLU.

    `mrope_section` has the number of frequencies that each position axis (time, height, width) rotates, in order;
    None means plain RoPE.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    mrope_section: tuple[int, ...] | None = None
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    tie_word_embeddings: bool = False

    @property
    def position_axes(self) -> int:
        return 1 if self.mrope_section is None else len(self.mrope_section)

    def entry(self) -> DecoderEntry:
        """What the manifest has of it."""
        return DecoderEntry(
            num_hidden_layers=self.num_hidden_layers,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            position_axes=self.position_axes,
            max_position_embeddings=self.max_position_embeddings,
            kv_dtype="float32",
        )


class AttentionInputs(NamedTuple):
    """What one layer's attention gets.

    `query` is `[batch, sequence, heads, head_dim]`, `key` and `value` have the key-value heads; query and key are
    rotated. `past_key` and `past_value` are `[batch, num_key_value_heads, past, head_dim]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    past_key: Tensor
    past_value: Tensor


Attend = Callable[[AttentionInputs], tuple[Tensor, Tensor, Tensor]]
"""Attention of one layer: returns `[batch, sequence, heads * head_dim]` and the present key and value."""


class SelfAttention(nn.Module):
    """Projections and rotation around an attention that the caller chooses."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def attend(self, x: Tensor, angles: Tensor, past: Sequence[Tensor], attend: Attend) -> tuple[Tensor, Tensor, Tensor]:
        """What the heads give, before `o_proj`, and the present key and value."""
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return attend(AttentionInputs(self.query(x, angles), self.key(x, angles), value, past[0], past[1]))

    def query(self, x: Tensor, angles: Tensor) -> Tensor:
        """Rotated queries `[..., heads, head_dim]` of normed hidden rows `[..., hidden_size]`."""
        return rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), angles)

    def key(self, x: Tensor, angles: Tensor) -> Tensor:
        """Rotated keys `[..., num_key_value_heads, head_dim]` of normed hidden rows `[..., hidden_size]`."""
        return rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), angles)


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def attend(self, x: Tensor, angles: Tensor, past: Sequence[Tensor], attend: Attend) -> tuple[Tensor, Tensor, Tensor]:
        """See `SelfAttention.attend`."""
        return self.self_attn.attend(self.input_layernorm(x), angles, past, attend)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What the layer gives, of its input and of `attend`, row by row."""
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextDecoder(nn.Module):
    """Embedding table, layers and head. Tables keep the checkpoint's `[vocab_size, hidden_size]`, so a tied one is shared."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        self.lm_head = None if config.tie_word_embeddings else Table(config.vocab_size, config.hidden_size)

    def angles(self, position_ids: Tensor) -> Tensor:
        """Rotation angles `[..., head_dim / 2]` of `position_ids [position_axes, ...]`."""
        angles = self.rotary(position_ids)
        if self.config.mrope_section is None:
            return angles[0]
        sections = angles.split(self.config.mrope_section, dim=-1)
        return torch.cat([section[axis] for axis, section in enumerate(sections)], dim=-1)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, last_indices: Tensor, past: Sequence[Tensor], attend: Attend
    ) -> tuple[Tensor, ...]:
        """Logits `[batch, vocab_size]` of the rows `last_indices [batch]`, the likeliest tokens `[batch]`, then present key and
        value of each layer."""
        x, attended, *presents = self.fill(inputs_embeds, position_ids, past, attend)
        batch, sequence, _ = x.shape
        rows = torch.arange(batch) * sequence + last_indices
        last_x, last_attended = (tensor.flatten(0, 1).index_select(0, rows) for tensor in (x, attended))
        last = cast(DecoderLayer, self.layers[-1]).finish(last_x, last_attended)
        logits = (self.lm_head or self.embed_tokens).logits(self.norm(last))
        return logits, _likeliest(logits), *presents

    def fill(self, inputs_embeds: Tensor, position_ids: Tensor, past: Sequence[Tensor], attend: Attend) -> tuple[Tensor, ...]:
        """What a cache needs of the tokens: the layers up to the attention of the last one. Of that the input and what its
        heads give, `[batch, sequence, width]` each, then present key and value of each layer."""
        angles = self.angles(position_ids)
        layers = [cast(DecoderLayer, layer) for layer in self.layers]
        x, attended, presents = inputs_embeds, inputs_embeds, []
        for index, layer in enumerate(layers):
            if index:
                x = layers[index - 1].finish(x, attended)
            attended, *present = layer.attend(x, angles, past[2 * index : 2 * index + 2], attend)
            presents += present
        return x, attended, *presents


def _likeliest(logits: Tensor) -> Tensor:
    """`[batch]` int64, -1 where the logits hold NaN: greedy decoding reads a token off the device, not the vocabulary."""
    # What argmax makes of NaN is not defined everywhere; a sum keeps it.
    return torch.where(torch.isnan(logits.sum(dim=-1)), -1, logits.argmax(dim=-1))


class Table(nn.Module):
    """A `[vocab_size, hidden_size]` matrix, read by token id or as the output head."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = empty(vocab_size, hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.embedding(input_ids, self.weight)

    def logits(self, x: Tensor) -> Tensor:
        """`x [batch, hidden_size]` against every token; two-dimensional, so that it becomes a Gemm with transB."""
        return nn.functional.linear(x, self.weight)


class OnnxRuntimeDecoder(nn.Module):
    """The graph `decoder`: ONNX Runtime's GroupQueryAttention on a cache that is updated in place."""

    def __init__(self, language_model: TextDecoder) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        last_indices: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        attend = partial(_group_query_attention, seqlens_k=seqlens_k, total=total_sequence_length)
        return self.language_model(inputs_embeds, position_ids, last_indices, past, attend)


class OnnxRuntimePrefill(nn.Module):
    """The graph `decoder_prefill`: what `decoder` leaves in the cache, and nothing else."""

    def __init__(self, language_model: TextDecoder) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        attend = partial(_group_query_attention, seqlens_k=seqlens_k, total=total_sequence_length)
        _, _, *presents = self.language_model.fill(inputs_embeds, position_ids, past, attend)
        return tuple(presents)


def _group_query_attention(inputs: AttentionInputs, seqlens_k: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (tensor.flatten(2) for tensor in inputs[:3])
    heads, head_dim = inputs.query.shape[2:]
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (query, key, value, inputs.past_key, inputs.past_value, seqlens_k, total),
        attrs={"num_heads": heads, "kv_num_heads": inputs.key.shape[2], "scale": head_dim**-0.5, "do_rotary": 0},
        dtypes=(query.dtype,) * 3,
        shapes=(query.shape, inputs.past_key.shape, inputs.past_value.shape),
        version=1,
    )
    return output, present_key, present_value


class StandardDecoder(nn.Module):
    """The graph `decoder_standard`: standard operators on a cache of fixed length, written in place at `write_indices`."""

    def __init__(self, language_model: TextDecoder) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        last_indices: Tensor,
        write_indices: Tensor,
        cache_indices: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        # Row i of the new tokens lies at write_indices + i of the cache and sees what lies up to there. Right padding needs no
        # mask of its own: no token sees what comes after it.
        rows = write_indices[:, None] + torch.arange(inputs_embeds.shape[1])
        mask = cache_indices <= rows[:, None, :, None]

        attend = partial(_standard_attention, mask=mask, write_indices=write_indices)
        return self.language_model(inputs_embeds, position_ids, last_indices, past, attend)


def _standard_attention(inputs: AttentionInputs, mask: Tensor, write_indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (tensor.transpose(1, 2) for tensor in inputs[:3])
    present_key = _tensor_scatter(inputs.past_key, key, write_indices)
    present_value = _tensor_scatter(inputs.past_value, value, write_indices)
    # Only the part of the cache that is in use: its capacity may be far above that.
    total = mask.shape[-1]
    grouped = query.shape[1] != key.shape[1]  # the tracer refuses groups of one
    output = nn.functional.scaled_dot_product_attention(
        query, present_key[:, :, :total], present_value[:, :, :total], attn_mask=mask, enable_gqa=grouped
    )
    return output.transpose(1, 2).flatten(2), present_key, present_value


def _tensor_scatter(cache: Tensor, update: Tensor, write_indices: Tensor) -> Tensor:
    """`cache [batch, kv_heads, capacity, head_dim]` with `update` written at each row's index; TensorRT does it in place."""
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, update, write_indices),
        attrs={"axis": 2},
        dtype=cache.dtype,
        shape=cache.shape,
        version=OPSET,
    )

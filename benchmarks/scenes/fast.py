"""The forward pass of a Qwen2-VL for training: the same weights and result as transformers, several times faster.

One grid a batch, so that attention runs over `[batch, heads, P, head_dim]` instead of image by image, the patch
embedding is a matrix product, and a question sees its image and itself only (`Batch.segments`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import Qwen2VLForConditionalGeneration

from benchmarks.scenes.checkpoint import PREPROCESSOR
from benchmarks.scenes.dataset import MERGE, Batch


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def vision_features(model: Qwen2VLForConditionalGeneration, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Visual embeddings float32 `[batch, N, D]` of uint8 patches `[batch, 4 N, 588]`."""
    return model.model.visual.merger.mlp[-1](merged_features(model, patches, rows, columns))


def merged_features(model: Qwen2VLForConditionalGeneration, patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """What the last matrix of the merger gets: float32 `[batch, N, 4 * embed_dim]`."""
    visual = model.model.visual
    mean = torch.tensor(PREPROCESSOR["image_mean"]).repeat_interleave(196)
    std = torch.tensor(PREPROCESSOR["image_std"]).repeat_interleave(196)
    # An image is its own second frame: both temporal slices of the kernel see the same pixels.
    kernel = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)
    hidden = F.linear((patches.float() / 255 - mean) / std, kernel)
    cos, sin = _vision_rope(visual, rows, columns)
    for block in visual.blocks:
        batch, length, width = hidden.shape
        qkv = block.attn.qkv(block.norm1(hidden)).view(batch, length, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merger = visual.merger
    return merger.mlp[:-1](merger.ln_q(hidden).view(hidden.shape[0], rows * columns, -1))


def _vision_rope(visual: torch.nn.Module, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(rows * MERGE), torch.arange(columns * MERGE), indexing="ij")
    windows = [
        grid.view(rows, MERGE, columns, MERGE).transpose(1, 2).reshape(-1, 1).float() * visual.rotary_pos_emb.inv_freq
        for grid in (y, x)
    ]
    angles = torch.cat(windows * 2, dim=-1)
    return angles.cos(), angles.sin()


def answer_logits(model: Qwen2VLForConditionalGeneration, batch: Batch, visual_embeds: torch.Tensor) -> torch.Tensor:
    """Logits float32 `[places, vocabulary]` at the places of `batch.labels` that are to be predicted."""
    text = model.model.language_model
    hidden = text.embed_tokens(batch.input_ids)
    is_visual = batch.input_ids == model.config.image_token_id
    hidden = hidden.masked_scatter(is_visual[..., None], visual_embeds)
    cos, sin = _text_rope(text, batch.positions)
    mask = _question_mask(batch.segments)
    for layer in text.layers:
        hidden = hidden + _attention(layer.self_attn, layer.input_layernorm(hidden), cos, sin, mask)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    asked = hidden[batch.labels >= 0]
    return model.lm_head(text.norm(asked))


def _text_rope(text: torch.nn.Module, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rope = text.rotary_emb
    angles = positions[..., None].float() * rope.inv_freq
    sections = text.config.rope_parameters["mrope_section"]
    mixed = torch.cat([part[axis] for axis, part in enumerate(angles.split(sections, dim=-1))], dim=-1)
    angles = torch.cat((mixed, mixed), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def _question_mask(segments: torch.Tensor) -> torch.Tensor:
    """bool `[batch, 1, S, S]`: causal, and across segments only toward segment 0."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    reachable = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return (causal & reachable)[:, None]


def _attention(
    attention: torch.nn.Module, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    batch, length, _ = hidden.shape
    split = lambda x: x.view(batch, length, -1, attention.head_dim).transpose(1, 2)  # noqa: E731
    q, k, v = split(attention.q_proj(hidden)), split(attention.k_proj(hidden)), split(attention.v_proj(hidden))
    groups = attention.num_key_value_groups
    k, v = _rotate(k, cos, sin).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), k, v, attn_mask=mask)
    return attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

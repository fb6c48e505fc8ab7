"""Dropping the visual tokens that do not stay, and lining requests up in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines import Array
from foveate.runtime.select import Selection
from foveate.runtime.types import Prepared


@dataclass(frozen=True, eq=False)
class Pruned:
    """A prompt without the dropped visual tokens; those that stay keep their order and their positions.

    Attributes:
        input_ids: `[tokens]` int64.
        position_ids: `[position_axes, tokens]` int64, of the unpruned prompt.
        next_position: where the positions of generated text start, as if nothing had been pruned.
        visual_embeds: `[visual_tokens, hidden_size]`, all of them, where the vision graph left them.
        keep_indices: `[kept]` int64, which of them stay.
        placeholder_indices: `[kept]` int64, where they go.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    next_position: int
    visual_embeds: Array
    keep_indices: np.ndarray
    placeholder_indices: np.ndarray


@dataclass(frozen=True, eq=False)
class Batch:
    """Pruned prompts, padded on the right.

    Attributes:
        input_ids: `[batch, sequence]` int64.
        position_ids: `[position_axes, batch, sequence]` int64.
        lengths: `[batch]` int32, tokens of each prompt.
        next_positions: `[batch]` int64.
        visual_embeds: `[visual_tokens, hidden_size]` of each request.
        keep_indices: `[kept]` int64, counted over all visual tokens of the batch.
        placeholder_indices: `[kept]` int64, counted over the flattened `batch x sequence`.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    lengths: np.ndarray
    next_positions: np.ndarray
    visual_embeds: tuple[Array, ...]
    keep_indices: np.ndarray
    placeholder_indices: np.ndarray


def prune(prepared: Prepared, visual_embeds: Array, selection: Selection) -> Pruned:
    """Drops the visual tokens that were not selected."""
    layout = prepared.layout
    kept_visuals = layout.visual_indices[selection.keep_indices]
    stays = np.ones(len(layout.input_ids), bool)
    stays[layout.visual_indices] = False
    stays[kept_visuals] = True
    kept = np.flatnonzero(stays)
    return Pruned(
        layout.input_ids[kept],
        layout.position_ids[:, kept],
        layout.next_position,
        visual_embeds,
        selection.keep_indices,
        np.searchsorted(kept, kept_visuals),
    )


def pad(prompts: Sequence[Pruned], pad_token_id: int) -> Batch:
    """Lines prompts up; padding comes behind, at position 0."""
    lengths = np.array([len(prompt.input_ids) for prompt in prompts], np.int32)
    width = int(lengths.max())
    input_ids = np.full((len(prompts), width), pad_token_id, np.int64)
    position_ids = np.zeros((len(prompts[0].position_ids), len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, : lengths[row]] = prompt.input_ids
        position_ids[:, row, : lengths[row]] = prompt.position_ids
    visuals = [len(prompt.visual_embeds) for prompt in prompts]
    first_visual = np.cumsum([0, *visuals[:-1]])
    return Batch(
        input_ids,
        position_ids,
        lengths,
        np.array([prompt.next_position for prompt in prompts], np.int64),
        tuple(prompt.visual_embeds for prompt in prompts),
        np.concatenate([prompt.keep_indices + first for prompt, first in zip(prompts, first_visual, strict=True)]),
        np.concatenate([prompt.placeholder_indices + row * width for row, prompt in enumerate(prompts)]),
    )

"""A request of which the tower computes some of the visual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from foveate.runtime.types import Prepared, Visual


def by_visual(tokens: np.ndarray, visuals: Sequence[Visual]) -> Iterator[tuple[Visual, np.ndarray]]:
    """Each image or video with those of its own visual tokens that are among `tokens`, if any."""
    first = 0
    for visual in visuals:
        own = tokens[(tokens >= first) & (tokens < first + visual.num_tokens)] - first
        if len(own):
            yield visual, own
        first += visual.num_tokens


def only(prepared: Prepared, tokens: np.ndarray) -> Prepared:
    """A request with some of its visual tokens, each at its old position."""
    layout = prepared.layout
    places = layout.visual_indices[tokens]
    stays = np.ones(len(layout.input_ids), bool)
    stays[layout.visual_indices] = False
    stays[places] = True
    kept = np.flatnonzero(stays)
    return replace(
        prepared,
        layout=replace(
            layout,
            input_ids=layout.input_ids[kept],
            position_ids=layout.position_ids[:, kept],
            visual_indices=np.searchsorted(kept, places),
        ),
        instruction_indices=np.searchsorted(kept, prepared.instruction_indices),
        present=tokens,
    )

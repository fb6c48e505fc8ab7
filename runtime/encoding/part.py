"""A request of which the tower computes some of the visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from foveate.engines import Array
from foveate.runtime.types import Prepared, Run, Visual


class Runs(NamedTuple):
    """How some of the visual tokens come about."""

    feeds: tuple[Mapping[str, np.ndarray], ...]
    """Of each run of the vision graph."""
    rows: np.ndarray
    """`[encoded]` int64: the row of each token among those that were seen and, behind them, those of the runs."""


def plan_runs(
    tokens: np.ndarray,
    visuals: Sequence[Visual],
    part: Callable[[Visual, np.ndarray], Sequence[Run]],
    seen: Sequence[int] = (),
) -> Runs:
    """The runs of the vision graph that give some of the visual tokens.

    Args:
        tokens: `[encoded]` int64, ascending, counted over all images and videos.
        visuals: these images and videos.
        part: see `Foveal.part`.
        seen: how many of the first tokens of each are there already; empty for none.
    """
    feeds, row_of = list[Mapping[str, np.ndarray]](), np.empty(sum(visual.num_tokens for visual in visuals), np.int64)
    first, before, rows = 0, 0, sum(seen)
    for visual, known in zip(visuals, seen or [0] * len(visuals), strict=True):
        row_of[first : first + known] = before + np.arange(known)
        own = tokens[(tokens >= first + known) & (tokens < first + visual.num_tokens)] - first
        for run in part(visual, own) if len(own) else ():
            feeds.append(run.feeds)
            row_of[first + run.tokens] = rows + np.arange(len(run.tokens))
            rows += len(run.tokens)
        first, before = first + visual.num_tokens, before + known
    return Runs(tuple(feeds), row_of[tokens])


def by_visual(visual_embeds: Array, visuals: Sequence[Visual]) -> tuple[Array, ...]:
    """The rows of each image and video."""
    ends = np.cumsum([visual.num_tokens for visual in visuals]).tolist()
    return tuple(visual_embeds[end - visual.num_tokens : end] for end, visual in zip(ends, visuals, strict=True))


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

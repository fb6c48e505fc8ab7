"""Placeholders that become as many tokens as their image or video has, in families whose positions count every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from foveate.engines import RequestError
from foveate.runtime.types import Layout, Visual, VisualKind


def expand_placeholders(input_ids: np.ndarray, placeholders: Mapping[int, VisualKind], visuals: Sequence[Visual]) -> Layout:
    """See `Processor.layout`.

    Args:
        input_ids: `[tokens]` int64.
        placeholders: token -> what it stands for.
        visuals: in the order of their placeholders.

    Raises:
        RequestError: the prompt has other placeholders than there are images and videos.
    """
    places = np.flatnonzero(np.isin(input_ids, list(placeholders)))
    expected = [placeholders[token] for token in input_ids[places].tolist()]
    kinds = [visual.kind for visual in visuals]
    if kinds != expected:
        raise RequestError(
            f"the prompt has placeholders for {_listed(expected)}, there are {_listed(kinds)}. "
            "Give one part per image and video, in the order in which the chat template shows them: images first."
        )
    counts = np.ones(len(input_ids), np.int64)
    counts[places] = [visual.num_tokens for visual in visuals]
    visual_indices = np.flatnonzero(np.repeat(np.isin(np.arange(len(input_ids)), places), counts))
    total = int(counts.sum())
    return Layout(np.repeat(input_ids, counts), np.arange(total)[None], visual_indices, total)


def _listed(kinds: Sequence[VisualKind]) -> str:
    return ", ".join(kinds) or "nothing"

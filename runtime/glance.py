"""A glance at a small picture first, then the visual tokens that matter for the question: what the tower need not see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from foveate.engines import RequestError
from foveate.runtime.select import Selector
from foveate.runtime.select.scores import Ranking
from foveate.runtime.types import Prepared, Visual

_ATTENTION = 0.31
"""Share of a tower's work that grows with the square of the patches; of Qwen2-VL-2B at 1008x672."""
_WORTH = 0.9
"""Of the whole tower's work, above which a glance does not pay."""
_SMALLEST_SCORE = 1e-9


def is_worth(glances: Sequence[Visual], count: int, visuals: Sequence[Visual]) -> bool:
    """Whether a glance and `count` visual tokens are clearly less work for a tower than all of them."""
    sizes = [(small.num_tokens, whole.num_tokens) for small, whole in zip(glances, visuals, strict=True)]
    total = sum(whole for _, whole in sizes)
    glance = sum(whole * _work(small / whole) for small, whole in sizes) / total
    return glance + _work(count / total) < _WORTH


def _work(tokens: float) -> float:
    """Of a tower, for a share of a picture's patches."""
    return (1 - _ATTENTION) * tokens + _ATTENTION * tokens**2


def enlarge(scores: np.ndarray, glances: Sequence[Visual], visuals: Sequence[Visual]) -> np.ndarray:
    """Scores of small pictures, read at the places of the large ones' visual tokens.

    Bilinear in the logarithm: scores of a softmax span orders of magnitude.

    Args:
        scores: `[glance_tokens]`, non-negative.
        glances: the small pictures.
        visuals: the large ones.

    Returns:
        `[visual_tokens]` float32.
    """
    logs, parts, first = np.log(np.maximum(scores, _SMALLEST_SCORE)).astype(np.float32), [], 0
    for small, whole in zip(glances, visuals, strict=True):
        for (_, rows, columns), (_, height, width) in zip(small.grids, whole.grids, strict=True):
            cells = Image.fromarray(logs[first : first + rows * columns].reshape(rows, columns))
            parts.append(np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR)).ravel())
            first += rows * columns
    return np.asarray(np.exp(np.concatenate(parts)))


def check_selector(selector: Selector) -> None:
    """Before the tower there are scores alone.

    Raises:
        RequestError: a selector that looks at visual tokens.
    """
    if not isinstance(selector, Ranking):
        raise RequestError(
            f"selector '{selector.name}' looks at visual tokens, which are not there before the tower. Leave out encode, "
            "or use another selector.",
            options=("encode", "select"),
        )


def split(tokens: np.ndarray, visuals: Sequence[Visual]) -> Iterator[tuple[Visual, np.ndarray]]:
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

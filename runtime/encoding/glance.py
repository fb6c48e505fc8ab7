"""A first look at small pictures, and what its scores say about the large ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.engines import Grid, RequestError
from foveate.runtime.select import Selector
from foveate.runtime.select.scores import Ranking

_SMALLEST_SCORE = 1e-9


def enlarge(scores: np.ndarray, small: Sequence[Grid], whole: Sequence[Grid]) -> np.ndarray:
    """Scores of small pictures, read at the places of the large ones' visual tokens.

    Bilinear in the logarithm: scores of a softmax span orders of magnitude.

    Args:
        scores: `[glance_tokens]`, non-negative.
        small: grids of the small pictures.
        whole: those of the large ones, as many, of as many frames.

    Returns:
        `[visual_tokens]` float32.
    """
    logs, parts, first = np.log(np.maximum(scores, _SMALLEST_SCORE)).astype(np.float32), [], 0
    for (frames, rows, columns), (_, height, width) in zip(small, whole, strict=True):
        for _ in range(frames):
            cells = Image.fromarray(logs[first : first + rows * columns].reshape(rows, columns))
            parts.append(np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR)).ravel())
            first += rows * columns
    return np.asarray(np.exp(np.concatenate(parts)))


def can_rank(selector: Selector) -> bool:
    """Whether scores of any picture are enough for it."""
    return isinstance(selector, Ranking) and bool(selector.needs)


def check_selector(selector: Selector) -> None:
    """Before the tower there are scores alone.

    Raises:
        RequestError: a selector that looks at visual tokens.
    """
    if not can_rank(selector):
        raise RequestError(
            f"selector '{selector.name}' looks at visual tokens, which are not there before the tower, or may. Leave out "
            "encode, or use another selector.",
            options=("encode", "select"),
        )

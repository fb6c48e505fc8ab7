"""What moves in a clip, by its pixels: it takes no model to see that."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from foveate.runtime.picture import Picture


def motion(pictures: Sequence[Picture]) -> np.ndarray:
    """How much the pixels of each visual token change, against the frames before and behind.

    Args:
        pictures: frames of one video, in their order, of one size; they tile all of its visual tokens.

    Returns:
        `[visual_tokens]` float32: 1 for what changes most, 0 for what stands still; all 0 where nothing changes.
    """
    rows, columns = pictures[0].grid
    changes = np.zeros((len(pictures) + 1, rows * columns), np.float32)
    frames = (np.asarray(picture.image, np.float32) for picture in pictures)
    for number, (before, frame) in enumerate(pairwise(frames), start=1):
        change = Image.fromarray(np.abs(frame - before).mean(axis=-1))
        changes[number] = np.asarray(change.resize((columns, rows), Image.Resampling.BOX)).ravel()
    found = np.zeros(1 + max(picture.tokens[-1] for picture in pictures), np.float32)
    # Frames of one step share tokens.
    for picture, (before, behind) in zip(pictures, pairwise(changes), strict=True):
        found[picture.tokens] = np.maximum.reduce([found[picture.tokens], before, behind])
    return found / (found.max() or 1)

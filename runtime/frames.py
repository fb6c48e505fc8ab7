"""Which frames of a video file the model sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAME_TIME = 1e-3
"""Seconds; Matroska rounds its times to as much."""
_FACTOR, _FEWEST = 2, 4
"""qwen-vl-utils takes a multiple of the one, and no fewer than the other where there are as many."""


@dataclass(frozen=True)
class FrameDefaults:
    """Which frames of a file are taken where the request does not say: what the authors of a family take.

    Attributes:
        rule: a name in `FRAME_RULES`.
        fps: frames per second, where the rule knows a rate.
        max_frames: most frames.
    """

    rule: str = "interval"
    fps: float = 1.0
    max_frames: int = 32


def by_interval(seconds: np.ndarray, end: float, fps: float, max_frames: int) -> np.ndarray:
    """What is on the screen at 0, 1/fps, 2/fps, ... seconds; of more such times, as many as may be, evenly spread."""
    step = max(1 / fps, end / max_frames)
    times = np.arange(max(1, min(max_frames, math.ceil((end - SAME_TIME) / step)))) * step
    return np.unique(np.searchsorted(seconds, times + SAME_TIME, side="right") - 1)


def by_number(seconds: np.ndarray, end: float, fps: float, max_frames: int) -> np.ndarray:
    """So many frames, evenly spread by their numbers from the first to the last, as the authors of LLaVA-OneVision
    (`load_video`) and VILA (`opencv_extract_frames`) take them."""
    count = len(seconds)
    return np.unique(np.linspace(0, count - 1, min(max_frames, count), dtype=np.int64))


def as_qwen_vl_utils(seconds: np.ndarray, end: float, fps: float, max_frames: int) -> np.ndarray:
    """As many frames as `fps` gives, an even number, at least 4, evenly spread from the first to the last: `smart_nframes` and
    `fetch_video` of qwen-vl-utils. (It refuses a video of one frame, which is taken here, and may take a frame twice.)"""
    total = len(seconds)
    most = min(max_frames, total)
    wanted = min(max(end * fps, min(_FEWEST, most)), most // _FACTOR * _FACTOR)
    count = max(1, math.floor(wanted / _FACTOR) * _FACTOR)
    return np.unique(np.rint(np.linspace(0, total - 1, count)).astype(np.int64))


FRAME_RULES: dict[str, Callable[[np.ndarray, float, float, int], np.ndarray]] = {
    "interval": by_interval,
    "uniform": by_number,
    "qwen-vl-utils": as_qwen_vl_utils,
}
"""Each takes the times of all frames, `[frames]` ascending, the length of the video, both in seconds, the frames per second and
the most frames, and gives the numbers of the frames to take, ascending."""
RULES_WITHOUT_RATE = frozenset({"uniform"})
"""Rules that no `fps` changes."""

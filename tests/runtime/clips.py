"""Small videos for tests, written with PyAV: each frame tells its number by its brightness."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

STEP = 6
"""How much brighter each frame is than the one before: far more than a codec changes flat grey."""


def grey(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full((size[1], size[0], 3), 10 + STEP * number, np.uint8)


def number_of(frame: Any) -> int:
    """Which frame of `grey` this was before it was coded."""
    return round((float(np.asarray(frame).mean()) - 10) / STEP)


def moving_square(frames: int, size: int = 112, side: int = 28) -> list[np.ndarray]:
    """A bright square that jumps its own width per frame, from left to right, over a still ground of noise."""
    ground = np.random.default_rng(0).integers(0, 90, (size, size, 3), dtype=np.uint8)
    pictures = [ground.copy() for _ in range(frames)]
    for number, picture in enumerate(pictures):
        left = number * side % size
        picture[side : 2 * side, left : left + side] = (250, 40, 40)
    return pictures


def encode(
    frames: Sequence[np.ndarray],
    rate: int = 10,
    codec: str = "libx264",
    container: str = "mp4",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    times: Sequence[int] | None = None,
    muxer: dict[str, str] | None = None,
    title: str = "",
) -> bytes:
    """A video file; `times` in units of 1/rate seconds where frames are not evenly spaced."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=muxer or {}) as output:
        if title:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if times:
                frame.pts = times[number]
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()

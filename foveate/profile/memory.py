"""Resident memory of a process that does one thing, because what a process has once taken it seldom gives back."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from foveate.engines import SessionOptions, resident_bytes
from foveate.runtime import Request, load


@dataclass(frozen=True)
class Task:
    """A bundle and a question about an image, which is a PNG."""

    bundle: Path
    backend: str
    options: SessionOptions
    vision_backend: str | None
    image: bytes
    question: str
    new_tokens: int


@dataclass(frozen=True)
class Footprint:
    """Bytes once the bundle is open and at most, None where the platform does not say; seconds of opening it."""

    loaded_bytes: int | None
    peak_bytes: int | None
    load_seconds: float


def measure_footprint(task: Task, keep: float) -> Footprint:
    """That of a new process that opens the bundle and answers once."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_answer, task, keep).result()


def _answer(task: Task, keep: float) -> Footprint:
    start = perf_counter()
    with load(task.bundle, task.backend, task.options, verify=False, vision_backend=task.vision_backend) as pipe:
        seconds = perf_counter() - start
        pipe.latency = None  # what was measured earlier shall decide nothing
        loaded = resident_bytes().now
        image = np.asarray(Image.open(io.BytesIO(task.image)))
        pipe.generate(Request.ask(task.question, image, keep=keep, max_new_tokens=task.new_tokens, ignore_eos=True))
        return Footprint(loaded, resident_bytes().peak, seconds)

"""What the workers share. A worker loads one model in its peer's environment, asks it and prints one line of JSON.

It needs no library but numpy, since a peer's environment has nothing of foveate's.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT = 1008, 672
VISUAL_TOKENS = (WIDTH // 28) * (HEIGHT // 28)
QUESTION = (
    "What colour is the object above the red circle with the word cat on it, how many objects of that colour are there, "
    "and which of them is closest to the left edge?"
)


@dataclass(frozen=True)
class Job:
    """What a worker is to measure.

    Attributes:
        model: folder of the model.
        precision: that of the model, where the folder does not say it.
        keeps: shares of the visual tokens to keep, one measurement each, the largest first.
        threads: CPU threads.
        new_tokens: how many tokens to generate.
        packages: whose versions to report.
        encode: the vision tower computes no more visual tokens than are kept; foveate alone can.
    """

    model: str
    precision: str
    keeps: Sequence[float]
    threads: int
    new_tokens: int
    packages: Sequence[str]
    encode: bool = False


@dataclass(frozen=True)
class Trace:
    """When things happened in one request, in seconds of `time.perf_counter`.

    Attributes:
        prompt_tokens: tokens that the decoder's prefill saw.
        started: the pixels are in memory.
        seen: the visual tokens are there; None where the peer has no vision.
        tokens: each generated token.
    """

    prompt_tokens: int
    started: float
    seen: float | None
    tokens: Sequence[float]


WARM_UPS = 2
"""Of the largest shape: ONNX Runtime plans its memory in the first run of a shape and takes it in the second."""

Ask = Callable[[np.ndarray, float], Trace]
Load = Callable[[Job], tuple[Ask, dict[str, Any]]]


def picture() -> np.ndarray:
    """`[672, 1008, 3]` uint8: 864 visual tokens."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def figures(trace: Trace, new_tokens: int) -> dict[str, Any]:
    """The numbers of one request.

    Raises:
        ValueError: it ended early, so the decoding can't be compared.
    """
    if len(trace.tokens) != new_tokens:
        raise ValueError(f"{len(trace.tokens)} tokens were generated, expected {new_tokens}. Switch off the end token.")
    first, last = trace.tokens[0], trace.tokens[-1]
    return {
        "prompt_tokens": trace.prompt_tokens,
        "vision_s": None if trace.seen is None else trace.seen - trace.started,
        "prefill_s": first - (trace.started if trace.seen is None else trace.seen),
        "ttft_s": None if trace.seen is None else first - trace.started,
        "decode_tokens_per_s": (new_tokens - 1) / (last - first),
    }


def peak_rss_bytes() -> int:
    """Of this process alone: `ru_maxrss` starts at its parent's size."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None, status
    return 1024 * int(found[1])


def work(load: Load) -> None:
    """Runs the job on the command line: loads, warms up with the most tokens and then with each keep ratio, and measures each
    once."""
    job = Job(**json.loads(sys.argv[1]))
    start = time.perf_counter()
    ask, settings = load(job)
    load_s = time.perf_counter() - start
    image = picture()
    for keep in (*[max(job.keeps)] * (WARM_UPS - 1), *job.keeps):
        ask(image, keep)
    runs = [{"keep": keep, **figures(ask(image, keep), job.new_tokens)} for keep in job.keeps]
    versions = {name: version(name) for name in job.packages}
    result = {"load_s": load_s, "peak_rss_bytes": peak_rss_bytes(), "settings": settings, "versions": versions, "runs": runs}
    print(json.dumps({"job": asdict(job), **result}), flush=True)

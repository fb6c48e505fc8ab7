"""foveate on ONNX Runtime; see `worker`. `prefill` includes scoring and dropping visual tokens."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

import foveate
from benchmarks.peers.worker import QUESTION, Ask, Job, Trace, work
from foveate.engines import SessionOptions
from foveate.runtime.stages import ENCODING


def load(job: Job, vision_backend: str | None = None) -> tuple[Ask, dict[str, Any]]:
    options = SessionOptions(threads=job.threads)
    pipe = foveate.load(job.model, options=options, verify=False, vision_cache_bytes=0, vision_backend=vision_backend)

    def ask(image: np.ndarray, keep: float) -> Trace:
        started = time.perf_counter()
        asked = foveate.Request.ask(QUESTION, image, keep=keep, max_new_tokens=job.new_tokens, ignore_eos=True)
        stream = pipe.stream(replace(asked, encode=keep) if job.encode else asked)
        times = [time.perf_counter() for _ in stream]
        (answer,) = stream.answers()
        seen = started + answer.timings.total(ENCODING) / 1000
        return Trace(answer.prompt_tokens, started, seen, times)

    return ask, {"vision cache": "off"}


if __name__ == "__main__":
    work(load)

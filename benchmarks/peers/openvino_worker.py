"""OpenVINO GenAI with its visual token pruning (CDPruner); see `worker`. `vision` includes the pruning."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.peers.worker import QUESTION, Ask, Job, Trace, work


class Clock(genai.StreamerBase):
    """Notes when each token comes."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, token: int | list[int]) -> genai.StreamingStatus:
        self.times += [time.perf_counter()] * (len(token) if isinstance(token, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def scheduler() -> genai.SchedulerConfig:
    """The pipeline's own default, which takes a prompt in one piece, but for the prefix cache: it would answer from the run
    before."""
    config = genai.SchedulerConfig()
    config.max_num_batched_tokens = sys.maxsize
    config.enable_prefix_caching = False
    return config


def load(job: Job) -> tuple[Ask, dict[str, Any]]:
    pipe = genai.VLMPipeline(job.model, "CPU", scheduler_config=scheduler(), INFERENCE_NUM_THREADS=job.threads)
    settings = {"max_new_tokens": job.new_tokens, "ignore_eos": True, "do_sample": False}

    def ask(image: np.ndarray, keep: float) -> Trace:
        clock, started = Clock(), time.perf_counter()
        options = genai.GenerationConfig(**settings, pruning_ratio=round(100 * (1 - keep)))
        tensor = openvino.Tensor(image[None])
        metrics = pipe.generate(QUESTION, images=[tensor], generation_config=options, streamer=clock).perf_metrics
        seen = started + metrics.get_prepare_embeddings_duration().mean / 1000
        return Trace(metrics.get_num_input_tokens(), started, seen, clock.times)

    core, names = openvino.Core(), {"arithmetic": "INFERENCE_PRECISION_HINT", "KV cache": "KV_CACHE_PRECISION"}
    chosen = {name: core.get_property("CPU", key).get_type_name() for name, key in names.items()}
    return ask, {"prefix cache": "off", **chosen}


if __name__ == "__main__":
    work(load)

"""The text decoder in ONNX Runtime GenAI, which has no Qwen2-VL; see `worker`. Its prompt is as long as the others'."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import onnxruntime_genai as genai

from benchmarks.peers.worker import QUESTION, VISUAL_TOKENS, Ask, Job, Trace, work

VISUAL_TOKEN = 1000
"""Any token does: the work does not depend on it."""
TEMPLATE_TOKENS = 10


def load(job: Job) -> tuple[Ask, dict[str, Any]]:
    config = genai.Config(job.model)
    session = {"intra_op_num_threads": job.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = genai.Model(config)
    text = genai.Tokenizer(model).encode(QUESTION)
    prompt = np.concatenate([np.full(VISUAL_TOKENS + TEMPLATE_TOKENS, VISUAL_TOKEN, np.int32), text])

    def ask(image: np.ndarray, keep: float) -> Trace:
        parameters = genai.GeneratorParams(model)
        length = len(prompt) + job.new_tokens
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, parameters)
        times, started = [], time.perf_counter()
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
            times.append(time.perf_counter())
        return Trace(len(prompt), started, None, times)

    return ask, {}


if __name__ == "__main__":
    work(load)

"""transformers with PyTorch; see `worker`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import Qwen2TokenizerFast, Qwen2VLForConditionalGeneration
from transformers.generation.streamers import BaseStreamer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.peers.worker import QUESTION, VISUAL_TOKENS, Ask, Job, Trace, work

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


class Clock(BaseStreamer):
    """Notes when the prompt and each token come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def load(job: Job) -> tuple[Ask, dict[str, Any]]:
    torch.set_num_threads(job.threads)
    model = Qwen2VLForConditionalGeneration.from_pretrained(job.model, dtype=DTYPES[job.precision]).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(job.model)
    tokenizer = Qwen2TokenizerFast.from_pretrained(job.model)
    seen: list[float] = []
    model.model.visual.register_forward_hook(lambda *_: seen.append(time.perf_counter()))

    @torch.inference_mode()
    def ask(image: np.ndarray, keep: float) -> Trace:
        clock, started = Clock(), time.perf_counter()
        text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * VISUAL_TOKENS), return_tensors="pt")["input_ids"]
        inputs = dict(processor(image, return_tensors="pt"), mm_token_type_ids=(ids == model.config.image_token_id).int())
        count = {"min_new_tokens": job.new_tokens, "max_new_tokens": job.new_tokens}
        model.generate(ids, attention_mask=torch.ones_like(ids), **inputs, **count, do_sample=False, streamer=clock)
        return Trace(ids.shape[1], started, seen[-1], clock.times[1:])

    return ask, {"attention": model.config._attn_implementation}


if __name__ == "__main__":
    work(load)

"""OpenVINO GenAI's continuous batching under a closed loop of clients, in this process; see `benchmarks.load`.

Its Python package holds the interpreter's lock in `step` and in `add_request`, which encodes the picture. So a thread a client
would change nothing: what is sent is encoded between two steps, as it is here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.peers.load_job import LoadJob
from benchmarks.peers.openvino_worker import scheduler


@dataclass
class Request:
    """One that is on its way, in seconds of `time.perf_counter`."""

    due: float
    sent: float
    handle: Any
    tokens: list[float] = field(default_factory=list)

    def told(self, start: float) -> dict[str, Any]:
        """As `foveate.bench.Sent` has it."""
        gaps = [1000 * (later - earlier) for earlier, later in zip(self.tokens, self.tokens[1:], strict=False)]
        return {
            "due_ms": 1000 * (self.due - start),
            "lag_ms": 1000 * (self.sent - self.due),
            "picture": True,
            "status": 200,
            "ttft_ms": 1000 * (self.tokens[0] - self.due),
            "gaps_ms": gaps,
            "end_to_end_ms": 1000 * (self.tokens[-1] - self.due),
            "chunks": len(self.tokens),
            "output_tokens": len(self.tokens),
            "by_usage": True,
            "prompt_tokens": self.handle.get_perf_metrics().get_num_input_tokens(),
        }


def drive(pipe: Any, job: LoadJob, pictures: np.ndarray) -> Iterator[dict[str, Any]]:
    """Every picture once; a client sends its next request when its last one is answered."""
    options = generation(job)
    start = time.perf_counter()
    waiting, running = list(enumerate(pictures)), []
    free = [start] * job.clients
    while waiting or running:
        while waiting and free:
            number, picture = waiting.pop(0)
            due, sent = free.pop(0), time.perf_counter()
            handle = pipe.add_request(number, job.question, [openvino.Tensor(picture[None])], options)
            running.append(Request(due, sent, handle))
        pipe.step()
        now = time.perf_counter()
        for request in [*running]:
            while request.handle.can_read():
                for output in request.handle.read().values():
                    request.tokens += [now] * len(output.generated_ids)
            if len(request.tokens) >= job.new_tokens:
                running.remove(request)
                free.append(now)
                yield request.told(start)


def generation(job: LoadJob) -> Any:
    """Greedy, of a fixed length."""
    ratio = round(100 * (1 - job.keep))
    return genai.GenerationConfig(max_new_tokens=job.new_tokens, ignore_eos=True, do_sample=False, pruning_ratio=ratio)


def main() -> None:
    job = LoadJob(**json.loads(sys.argv[1]))
    pictures = np.load(job.inputs)["pictures"]
    pipe = genai.ContinuousBatchingPipeline(job.model, scheduler(), "CPU", {"INFERENCE_NUM_THREADS": job.threads})
    # Not only to warm up: `add_request` leaves the share to prune as the last `generate` set it.
    pipe.generate([job.question], images=[[openvino.Tensor(pictures[0][None])]], generation_config=[generation(job)])
    start = time.perf_counter()
    requests = list(drive(pipe, job, pictures[1:]))
    print(json.dumps({"requests": requests, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()

"""Load against other loads: what is computed from rounds, going on where a run was ended, and the peer's driver."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import load
from benchmarks.load import CASES, Line, Lines, rows, shown
from benchmarks.peers.load_job import LoadJob
from foveate.bench import LoadPoint, Sent
from foveate.bench.results import summarise


def point(clients: int, keep: float, seconds: float, error: str = "") -> LoadPoint:
    """Two requests with 10 tokens each, the first after 100 ms a client."""
    gaps = [10.0] * 8 + [10.0 * clients]
    sent = Sent(
        due_ms=0,
        lag_ms=0,
        picture=True,
        status=200,
        error=error,
        ttft_ms=100 * clients * keep,
        gaps_ms=gaps,
        end_to_end_ms=500,
        chunks=10,
        output_tokens=10,
    )
    return LoadPoint(
        kind="closed",
        value=clients,
        keep=keep,
        seconds=seconds,
        figures=summarise([sent, sent], seconds),
        memory=None,
        generator_cpu_share=0,
        generator_token_us=None,
        requests=[sent, sent],
    )


ROUNDS = {
    "clients": [point(1, 1, 10), point(8, 1, 2)],
    "decode": [point(1, 1, 4), point(4, 1, 2)],
    "mixed": [point(1, 1, 3), point(4, 1, 2)],
    "keep-tiny": [point(8, 1, 3), point(8, 0.25, 2)],
    "keep-2b": [point(8, 1, 3), point(8, 0.25, 6)],
    "peer": [point(4, 0.25, seconds) for seconds in (2, 4, 1)] + [point(4, 0.25, 3), point(4, 1, 8)],
}


def test_every_case_has_its_figures() -> None:
    found = {(row.case, row.figure.partition(",")[0]): (row.values[0], row.met) for row in rows(Line(*one) for one in LINES)}
    assert found == {
        ("clients", "tokens/s"): (5, True),
        ("decode", "tokens/s"): (2, False),
        ("mixed", "tokens/s"): (1.5, True),
        ("mixed", "longest gap over median gap"): (4, False),
        ("keep-tiny", "requests/s"): (1.5, True),
        ("keep-2b", "requests/s"): (0.5, False),
    } | {
        ("peer", f"{figure} at keep 0.25 and {way} against OpenVINO GenAI at keep {keep}"): (value, value >= 1)
        for way, tokens in (("whole tower", (1.5, 4)), ("whole tower of OpenVINO", (0.75, 2)), ("encode auto", (3, 8)))
        for figure, values in (("tokens/s", tokens), ("TTFT (above 1 is sooner)", (1, 4)))
        for keep, value in zip(("0.25", "1"), values, strict=True)
    }


LINES = [(name, 0, points) for name, points in ROUNDS.items()]


def test_the_table_has_median_and_range() -> None:
    lines = [Line("clients", number, [point(1, 1, 8), point(8, 1, seconds)]) for number, seconds in enumerate((1, 2, 4))]
    assert "| 4.00 (2.00 - 8.00) | 3 | at least 4 | yes |" in list(shown(rows(lines)))[-1]


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a" / "load.jsonl")
    lines.add(Line("clients", 0, ROUNDS["clients"]))
    with lines.path.open("ab") as file:
        file.write(b'{"case": "half')
    again = Lines(lines.path)
    assert again.has("clients", 0)
    assert not again.has("clients", 1)
    again.add(Line("clients", 1, ROUNDS["clients"]))
    assert Lines(lines.path).lines == again.lines
    assert len(again.lines) == 2


def test_a_round_with_failures_does_not_count(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "load.jsonl")
    with pytest.raises(ValueError, match="HTTP 429"):
        lines.add(Line("clients", 0, [point(1, 1, 1, "HTTP 429")]))
    assert not lines.path.exists()


class FakePipeline:
    """A token of each request a step."""

    def __init__(self) -> None:
        self.most, self.running = 0, {}

    def add_request(self, number: int, question: str, images: list[Any], options: Any) -> Any:
        queue: deque[int] = deque()
        self.running[number] = (queue, options)

        def read() -> dict[int, Any]:
            return {0: SimpleNamespace(generated_ids=[queue.popleft()])}

        counts = SimpleNamespace(get_num_input_tokens=lambda: 77)
        return SimpleNamespace(can_read=lambda: bool(queue), read=read, get_perf_metrics=lambda: counts)

    def step(self) -> None:
        self.most = max(self.most, len(self.running))
        for number, (queue, options) in [*self.running.items()]:
            queue.append(1)
            options.left[number] = options.left.get(number, options.max_new_tokens) - 1
            if not options.left[number]:
                del self.running[number]


def test_the_peers_driver_keeps_as_many_requests_going_as_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    openvino, genai = ModuleType("openvino"), ModuleType("openvino_genai")
    openvino.Tensor = lambda array: array  # type: ignore[attr-defined]
    genai.StreamerBase, genai.StreamingStatus = object, object  # type: ignore[attr-defined]
    genai.GenerationConfig = lambda **options: SimpleNamespace(left={}, **options)  # type: ignore[attr-defined]
    genai.SchedulerConfig = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
    for name in ("load_openvino", "openvino_worker"):
        monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}", raising=False)
    from benchmarks.peers.load_openvino import drive, generation

    job = LoadJob("m", "i.npz", "what", 0.25, clients=3, new_tokens=4, threads=1)
    assert generation(job).pruning_ratio == 75
    pipe = FakePipeline()
    told = list(drive(pipe, job, np.zeros((7, 2, 2, 3), np.uint8)))
    requests = msgspec.convert(told, list[Sent])
    assert (len(requests), pipe.most) == (7, 3)
    assert all(len(sent.gaps_ms) == 3 and sent.output_tokens == 4 and sent.prompt_tokens == 77 for sent in requests)
    assert summarise(requests, 1.0).output_tokens_per_second == 28


def test_the_peer_gets_what_foveate_gets(tmp_path: Path) -> None:
    jobs = []

    class Place:
        folder = tmp_path

        def model(self, name: str, precision: str) -> Path:
            return tmp_path / f"{name}-{precision}"

        def drive(self, name: str, module: str, job: dict[str, Any]) -> dict[str, Any]:
            jobs.append((name, module, job))
            return {"requests": [msgspec.to_builtins(point(4, 1, 1).requests[0])], "seconds": 2.0}

    case = replace(CASES["peer"], plan=replace(CASES["peer"].plan, requests=2, image_size=(30, 20)))
    found = load.measure_peer(case, Place(), 0.25, 2)  # type: ignore[arg-type]
    ((name, module, job),) = jobs
    assert (name, module, job["keep"], job["clients"], job["new_tokens"]) == ("openvino", "load_openvino", 0.25, 4, 32)
    assert np.load(job["inputs"])["pictures"].shape == (3, 20, 30, 3)
    assert (found.keep, found.figures.output_tokens_per_second) == (0.25, 5)

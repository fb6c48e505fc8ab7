"""A stand-in server with known delays and faults: what is measured is what it did."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from statistics import median
from time import perf_counter

import numpy as np
import pytest
from PIL import Image

from foveate.bench import Benchmark, BenchPlan, LoadPoint
from foveate.bench.client import Address, Client
from foveate.bench.drive import Message, drive
from foveate.bench.plan import Load
from foveate.bench.questions import chat_body, draw_picture
from foveate.bench.results import Sent
from foveate.bench.run import bench_server
from foveate.engines import DataError, OptionError
from tests.foveate.bench.standin import StandIn, running
from tests.foveate.conftest import SAMPLES, SCENES

SMALL = {"image_size": (32, 24), "warm_up": 1}
NEAR_MS = 15.0
"""Between a write of the server and its arrival, for the best quarter; on a busy machine many take longer."""


def measure(server: StandIn, **options: object) -> Benchmark:
    with running(server):
        return bench_server(server.url, BenchPlan(**SMALL, **options))  # type: ignore[arg-type]


def only(benchmark: Benchmark) -> LoadPoint:
    (point,) = benchmark.points
    return point


def test_times_are_the_servers() -> None:
    """Request k waits for its known time, and chunks come as far apart as they were written."""
    server = StandIn(first_s=tuple(0.02 + 0.01 * number for number in range(9)), gap_s=0.02)
    point = only(measure(server, clients=(1,), requests=8))
    truth = [1000 * (wrote[0] - came) for came, wrote in zip(server.came[1:], server.wrote[1:], strict=True)]
    found = [sent.ttft_ms or 0 for sent in point.requests]
    assert all(late >= known >= 1000 * wait for late, known, wait in zip(found, truth, server.first_s[1:], strict=True))
    assert np.quantile(np.subtract(found, truth), 0.25) < NEAR_MS
    assert point.figures.ttft_ms is not None
    assert point.figures.ttft_ms.p50 == pytest.approx(median(found))
    written = [1000 * gap for times in server.wrote[1:] for gap in np.diff(times)]
    arrived = [gap for sent in point.requests for gap in sent.gaps_ms]
    assert np.quantile(np.abs(np.subtract(arrived, written)), 0.25) < NEAR_MS / 3
    assert all(sent.end_to_end_ms >= (sent.ttft_ms or 0) + sum(sent.gaps_ms) - 0.01 for sent in point.requests)
    assert point.figures.itl_ms is not None
    assert point.figures.itl_ms.p50 >= 20 - 1
    assert (point.figures.answered, point.figures.errors) == (8, {})


def test_a_closed_loop_has_as_many_requests_at_once_as_clients() -> None:
    server = StandIn(first_s=(0.1,), gap_s=0.0, chunks=1)
    one, four = measure(server, clients=(1, 4), requests=8).points
    assert one.seconds >= 0.8
    assert 0.2 <= four.seconds < 0.6 * one.seconds
    assert four.figures.requests_per_second == pytest.approx(8 / four.seconds)


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A server that takes one request at a time falls behind, and the wait in its queue counts."""
    server = StandIn(first_s=(0.04,), chunks=1, serial=True)
    point = only(measure(server, rates=(1000.0,), clients=(), requests=10))
    ends = [sent.due_ms + (sent.ttft_ms or 0) for sent in point.requests]
    assert max(ends) >= 10 * 40
    assert max(sent.due_ms for sent in point.requests) < 100
    assert point.figures.ttft_ms is not None
    assert point.figures.ttft_ms.p50 >= 40 * 5 - 100


def test_a_late_generator_is_no_excuse() -> None:
    server = StandIn(chunks=1)
    with running(server):
        client = Client(Address.of(server.url), 60)
        body = b'{"model": "tiny"}'
        late = asyncio.run(client.send(body, False, perf_counter() - 0.5, perf_counter() - 0.5))
    assert late.lag_ms >= 500
    assert (late.ttft_ms or 0) >= 530


def test_what_blocks_the_generator_moves_no_due_time() -> None:
    sent_at = []

    async def send(message: Message, due: float, start: float) -> Sent:
        sent_at.append(perf_counter() - due)
        time.sleep(0.05)
        return Sent(due_ms=1000 * (due - start), lag_ms=0, picture=False, status=200, end_to_end_ms=0)

    plan = BenchPlan(rates=(1000.0,), requests=6)
    driven = asyncio.run(drive(Load("open", 1000.0), lambda place: Message(b"", False), send, plan, 0))
    assert driven.requests[-1].due_ms < 50
    assert sent_at[-1] > 0.1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "HTTP 429"),
        ("503", "HTTP 503"),
        ("cut", "cut off"),
        ("break", "connection broke"),
        ("error", "error in the stream"),
        ("garbage", "not the API"),
        ("empty", "empty answer"),
        ("stall", "timeout"),
    ],
)
def test_a_fault_is_counted_by_its_kind(fault: str, kind: str) -> None:
    server = StandIn(fault=fault, first_s=(0.01,))
    benchmark = measure(server, clients=(1,), requests=3, timeout_s=0.5 if fault == "stall" else 30.0)
    figures = only(benchmark).figures
    assert figures.errors == {kind: 2}  # those with odd numbers
    assert figures.answered == 1
    assert list(benchmark.setting.error_examples) == [kind]
    if fault in ("429", "error"):
        assert benchmark.setting.error_examples[kind] == {"429": "come back later", "error": "the graph fell over"}[fault]


def test_tokens_are_the_servers_where_it_counts_them() -> None:
    counted, guessed = (only(measure(StandIn(usage_tokens=tokens), clients=(1,), requests=2)) for tokens in (9, None))
    assert [sent.output_tokens for sent in counted.requests] == [9, 9]
    assert [sent.output_tokens for sent in guessed.requests] == [4, 4]
    assert (counted.figures.tokens_by, guessed.figures.tokens_by) == ("usage", "chunks")
    assert counted.requests[0].prompt_tokens == 70


def test_keep_is_asked_of_our_servers_only() -> None:
    ours, other = StandIn(), StandIn(ours=False)
    points = measure(ours, clients=(1,), requests=2, keeps=(1.0, 0.25)).points
    assert [point.keep for point in points] == [1.0, 0.25]
    assert [point.figures.kept_tokens for point in points] == [64, 16]
    assert [body["foveate"]["keep"] for body in ours.bodies[1:]] == [1.0, 1.0, 0.25, 0.25]
    benchmark = measure(other, clients=(1,), requests=2, keeps=(1.0, 0.25))
    assert [point.keep for point in benchmark.points] == [1.0]
    assert all("foveate" not in body for body in other.bodies)
    assert "without 0.25" in " ".join(benchmark.setting.remarks)
    assert benchmark.setting.server == "vllm 0.0"


def test_rounds_take_turns() -> None:
    server = StandIn(chunks=1, first_s=(0.0,))
    points = measure(server, clients=(1,), requests=2, keeps=(1.0, 0.5), rounds=2).points
    assert [body["foveate"]["keep"] for body in server.bodies[1:]] == [1.0, 1.0, 0.5, 0.5] * 2
    assert [len(point.requests) for point in points] == [4, 4]


def pictures(server: StandIn) -> list[bytes]:
    found = []
    for body in server.bodies:
        for part in body["messages"][0]["content"]:
            if part["type"] == "image_url":
                found.append(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
    return found


def test_no_drawn_picture_comes_twice() -> None:
    server = StandIn(chunks=1, first_s=(0.0,))
    measure(server, clients=(1, 2), requests=3)
    assert len(set(pictures(server))) == len(server.bodies) == 7
    assert Image.open(io.BytesIO(pictures(server)[0])).convert("RGB").size == (32, 24)
    again = StandIn(chunks=1, first_s=(0.0,))
    measure(again, clients=(1, 2), requests=3)
    assert pictures(again) == pictures(server)


def test_a_drawn_picture_is_no_noise() -> None:
    content = draw_picture((448, 336), np.random.default_rng(0))
    assert len(content) < 20_000
    assert len(Image.open(io.BytesIO(content)).convert("RGB").getcolors() or []) > 4


def test_a_share_of_text_alone() -> None:
    server = StandIn(chunks=1, first_s=(0.0,))
    points = measure(server, clients=(1,), requests=20, keeps=(1.0, 0.5), text_only=0.5).points
    kinds = [[sent.picture for sent in point.requests] for point in points]
    assert kinds[0] == kinds[1]
    assert 4 <= sum(kinds[0]) <= 16
    assert all("foveate" in body or len(body["messages"][0]["content"]) == 1 for body in server.bodies)


def test_a_users_own_questions() -> None:
    server = StandIn(chunks=1, first_s=(0.0,))
    with running(server):
        benchmark = bench_server(
            server.url, BenchPlan(clients=(1,), requests=len(SAMPLES), data=SCENES, warm_up=1, max_tokens=5)
        )
    asked = [body["messages"][0]["content"][1]["text"] for body in server.bodies[1:]]
    assert sorted(asked) == sorted(sample.question for sample in SAMPLES)
    assert (server.bodies[0]["max_tokens"], server.bodies[0]["stream"]) == (5, True)
    assert "same pictures" in benchmark.setting.remarks[0]


def test_seconds_in_place_of_a_number() -> None:
    server = StandIn(chunks=1, first_s=(0.05,))
    point = only(measure(server, clients=(2,), seconds=0.3))
    assert point.seconds >= 0.3
    assert len(point.requests) >= 2
    assert all(sent.due_ms < 300 for sent in point.requests)


def test_the_key_is_sent_and_the_memory_asked_for() -> None:
    server = StandIn(chunks=1)
    with running(server):
        point = only(bench_server(f"{server.url}/v1/", BenchPlan(clients=(1,), requests=1, **SMALL), api_key="secret"))  # type: ignore[arg-type]
    assert all("Authorization: Bearer secret" in head for head in server.headers)
    assert point.memory is not None
    assert (point.memory.resident_bytes, point.memory.private_bytes, point.memory.source) == (150_000_000, None, "/metrics")


def test_what_no_server_answers() -> None:
    with pytest.raises(OptionError, match="does not answer"):
        bench_server("http://127.0.0.1:9", BenchPlan())
    for url in ("http://", "ftp://x", "http://x:99999", "http://a@x:1"):
        with pytest.raises(OptionError, match="no URL"):
            bench_server(url, BenchPlan())


@pytest.mark.parametrize(
    ("models", "model", "told"),
    [
        (("a", "b"), None, "several models: a, b"),
        (("a",), "c", "no model 'c'"),
        ((), None, "does not say"),
        ((), "c", "no such model"),
    ],
)
def test_a_model_that_is_not_there(models: tuple[str, ...], model: str | None, told: str) -> None:
    server = StandIn(models=models)
    with running(server), pytest.raises(OptionError, match=told) as caught:
        bench_server(server.url, BenchPlan(**SMALL), model)  # type: ignore[arg-type]
    assert "model" in caught.value.options


def test_videos_with_a_rule_of_their_own_are_refused(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "a.mp4").write_bytes(b"x")
    (folder / "questions.jsonl").write_text('{"video": "a.mp4", "question": "what", "answer": "it", "fps": 2}\n')
    with pytest.raises(DataError, match="fps"):
        bench_server("http://127.0.0.1:9", BenchPlan(data=folder))


def test_encode_goes_to_servers_that_know_it() -> None:
    plan = BenchPlan(**SMALL, encode="auto")  # type: ignore[arg-type]
    body = json.loads(chat_body([{"type": "text", "text": "What is it?"}], "tiny", plan, 0.25))
    assert body["foveate"] == {"keep": 0.25, "encode": "auto"}
    assert "foveate" not in json.loads(chat_body([], "tiny", plan, None))
    for ours in (True, False):
        server = StandIn(chunks=1, ours=ours)
        with running(server):
            told = bench_server(server.url, plan)
        assert any("whatever encode says" in remark for remark in told.setting.remarks) is not ours
        assert [body.get("foveate") for body in server.bodies if "foveate" in body] == [{"keep": 1.0, "encode": "auto"}] * (
            len(server.bodies) if ours else 0
        )
    with pytest.raises(OptionError, match="encode is 2"):
        BenchPlan(encode=2.0)

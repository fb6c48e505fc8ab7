"""A server's life: clients that leave, drains, a watchdog, figures, the log."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from typing import Any

import httpx2
import openai
import pytest

from foveate.runtime.scheduler import EngineOptions
from tests.foveate.serve.conftest import ASK, CHAT, TEXT, Running, Serve, wait_until
from tests.foveate.serve.test_refusals import check

LONG = {"max_tokens": 900, "ignore_eos": True}
ONE = EngineOptions(slots=1, tokens_per_slot=1024)


def send(server: Running, body: dict[str, Any]) -> socket.socket:
    """A client that says what it wants and may then leave."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps({"messages": TEXT, **LONG, **body}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    client = socket.create_connection((host, int(port)))
    client.sendall(head.encode() + content)
    return client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_client_that_leaves_frees_its_slot_at_once(serve: Serve, stream: bool, when: str) -> None:
    with serve(ONE) as server:
        first = send(server, {"stream": stream})
        wait_until(lambda: server.engine.stats().running)
        second = send(server, {"stream": stream, "messages": ASK})
        wait_until(lambda: sum(_held(server)[1:]) == 1)
        leaving, staying = (second, first) if when == "waiting" else (first, second)
        leaving.close()
        wait_until(lambda: server.engine.stats().finished.get("cancelled"))
        assert server.engine.stats().finished.get("length") is None
        staying.close()
        wait_until(lambda: sum(_held(server)) == 0)
        wait_until(lambda: server.state.active == 0)
        assert server.chat().status_code == 200


def _held(server: Running) -> tuple[int, ...]:
    stats = server.engine.stats()
    return stats.running, stats.waiting, stats.preparing, stats.ready


def test_the_official_client_may_leave_a_stream(serve: Serve) -> None:
    with serve(ONE) as server:
        stream = server.openai().chat.completions.create(model="tiny", messages=TEXT, stream=True, extra_body=LONG)  # type: ignore[call-overload]
        next(iter(stream))
        stream.close()
        wait_until(lambda: server.engine.stats().finished.get("cancelled") == 1)


def test_half_a_body_and_gone(server: Running) -> None:
    client = send(server, {})
    client.close()
    half = send(server, {"messages": TEXT})
    half.close()
    wait_until(lambda: server.state.active == 0)
    assert server.chat().status_code == 200


def test_a_drain_finishes_what_runs_and_refuses_what_comes(serve: Serve) -> None:
    with serve(ONE) as server:
        found: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: found.append(server.chat(**{**LONG, "max_tokens": 200})))
        thread.start()
        wait_until(lambda: server.engine.stats().running)
        server.state.drain()
        assert (server.http.get("/ready").status_code, server.http.get("/health").status_code) == (503, 200)
        assert check(server.chat(), 503, "about to stop")["code"] == "draining"
        thread.join()
        assert found[0].json()["choices"][0]["finish_reason"] == "length"


def test_stuck(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that hangs can't be had; the figure by which it is known can."""
    with serve(stuck_after_s=5) as server:
        assert server.http.get("/health").json() == server.http.get("/ready").json() == {"status": "ok"}
        usual = server.engine.stats

        def idle(milliseconds: float) -> Any:
            return lambda: type(usual())(**{**vars(usual()), "idle_ms": milliseconds})

        monkeypatch.setattr(server.engine, "stats", idle(4900.0))
        assert server.http.get("/ready").status_code == 200
        monkeypatch.setattr(server.engine, "stats", idle(5100.0))
        for path in ("/health", "/ready"):
            response = server.http.get(path)
            assert (response.status_code, response.json()) == (503, {"status": "stuck"})


def test_health_is_answered_while_work_waits(serve: Serve) -> None:
    with serve(ONE) as server:
        clients = [send(server, {"messages": ASK, "max_tokens": 600}) for _ in range(4)]
        wait_until(lambda: sum(_held(server)) == 4)
        start = time.perf_counter()
        assert server.http.get("/health").status_code == 200
        assert time.perf_counter() - start < 2
        for client in clients:
            client.close()
        wait_until(lambda: sum(_held(server)) == 0)


def read_metrics(server: Running) -> dict[str, float]:
    lines = server.http.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_metrics(serve: Serve) -> None:
    with serve() as server:
        before = read_metrics(server)
        assert before['foveate:num_requests_running{model_name="tiny"}'] == 0
        answer = server.chat(messages=ASK, foveate={"keep": 0.25}).json()
        found = read_metrics(server)

        def of(name: str, labels: str = "") -> float:
            return found[f'foveate:{name}{{{labels}model_name="tiny"}}']

        usage, told = answer["usage"], answer["foveate"]
        assert of("prompt_tokens_total") == usage["prompt_tokens"]
        assert of("generation_tokens_total") == usage["completion_tokens"]
        assert (of("visual_tokens_total"), of("visual_tokens_kept_total")) == (told["visual_tokens"], told["kept_tokens"])
        assert found['foveate:request_success_total{finished_reason="eos",model_name="tiny"}'] == 1
        assert of("time_to_first_token_seconds_sum") == pytest.approx(told["timings"]["ttft_ms"] / 1e3, abs=0.1)
        assert of("inter_token_latency_seconds_count") == len(told["timings"]["decode_ms"])
        for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
            assert of(f"{name}_seconds_count") == 1
        assert found[f'foveate:http_requests_total{{path="{CHAT}",status="200"}}'] == 1


def test_the_log_has_a_line_and_no_contents(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "foveate.serve")
    secret = [{"role": "user", "content": "my secret"}]
    response = server.http.post(CHAT, json={"messages": secret, "max_tokens": 2}, headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    wait_until(lambda: "abc-1" in caplog.text)
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if "abc-1" in record.getMessage()]
    facts = {name: line[name] for name in ("id", "method", "path", "status", "model", "completion_tokens")}
    assert facts == {
        "id": "abc-1", "method": "POST", "path": CHAT, "status": 200, "model": "tiny", "completion_tokens": 2,
    }  # fmt: skip
    assert line["ms"] > 0
    odd = server.http.get("/surprise/secret", headers={"x-request-id": "a b\x7f"})
    assert len(odd.headers["x-request-id"]) == 32
    assert "secret" not in caplog.text


def test_the_client_asks_again_where_that_may_help(serve: Serve) -> None:
    """The official client retries a 429 and leaves a 504 alone, by what the headers say."""
    with serve(EngineOptions(slots=1, tokens_per_slot=1024, max_waiting=0)) as server, pytest.raises(openai.RateLimitError):
        server.openai(max_retries=1).chat.completions.create(model="tiny", messages=TEXT)  # type: ignore[arg-type]
    assert read_http(server) == {"429": 2}
    own = {"foveate": {"deadline_ms": 0.01}}
    with serve() as server, pytest.raises(openai.APIStatusError):
        server.openai(max_retries=2).chat.completions.create(model="tiny", messages=TEXT, extra_body=own)  # type: ignore[call-overload]
    assert read_http(server) == {"504": 1}


def read_http(server: Running) -> dict[str, int]:
    """How often chats were answered with each status."""
    lines = server.state.metrics.text().decode().splitlines()
    found = [line.split('status="') for line in lines if line.startswith(f'foveate:http_requests_total{{path="{CHAT}"')]
    return {rest.split('"')[0]: int(float(rest.rpartition(" ")[2])) for _, rest in found}

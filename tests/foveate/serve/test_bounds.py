"""What one client may take of the machine: its threads, its memory, the turns of others."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.requests import Request as StarletteRequest
from starlette.responses import StreamingResponse
from starlette.routing import Route

from foveate.engines import CancelledError, OptionError, RequestError
from foveate.runtime import Pipeline, Request
from foveate.runtime.scheduler import EngineOptions
from foveate.serve import Served, ServeOptions, make_app
from foveate.serve.calls import Call, Record
from foveate.serve.metrics import Metrics
from foveate.serve.room import Holding, Room
from foveate.serve.schema import ChatBody
from foveate.serve.server import address_of, listen, make_server
from foveate.serve.sources import SourceLimits, Sources
from foveate.serve.tokens import TokenTexts
from tests.foveate.serve.conftest import CHAT, TEXT, Running, Serve, wait_until
from tests.foveate.serve.test_refusals import check

ONE = EngineOptions(slots=1, tokens_per_slot=1024)


@pytest.fixture(scope="session")
def texts(pipe: Pipeline) -> TokenTexts:
    return TokenTexts(pipe._tokenizer)


def ticks_beside(work: Callable[[], object]) -> int:
    """How often another thread had its turn meanwhile."""
    thread, ticks = threading.Thread(target=work), 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    return ticks


def test_threads_go_on_while_a_text_is_read(pipe: Pipeline, texts: TokenTexts) -> None:
    text = "a word of many " * 20_000
    assert ticks_beside(lambda: texts.encode(text, True)) > 5
    assert ticks_beside(lambda: pipe._prepare._encoder._encode_piece(text, False)) > 5


def test_threads_go_on_while_tokens_are_made_text(texts: TokenTexts) -> None:
    tokens = [5, 9, 30] * 200_000
    assert ticks_beside(lambda: texts.decode(tokens)) > 5


def test_more_tokens_than_fit_are_made_no_text(server: Running) -> None:
    response = server.http.post("/detokenize", json={"tokens": [1] * 1025})
    check(response, 400, "there are 1025 tokens, the limit is 1024", param="tokens")


@pytest.mark.parametrize(
    "head", ["data:image/png" + ";a" * 5_000_000, "data:" + "a" * 10_000_000, "http://a/" + "é" * 4_000_000]
)
def test_a_long_head_of_an_address_is_refused_at_sight(head: str) -> None:
    start = time.process_time()
    with pytest.raises(RequestError):
        asyncio.run(Sources(["a"]).resolve(head, "image"))
    assert time.process_time() - start < 0.3


def test_nobody_goes_before_the_others(server: Running) -> None:
    check(server.chat(foveate={"priority": -1}), 400, ">= 0", param="foveate.priority")
    assert server.chat(foveate={"priority": 3}).status_code == 200


def test_a_full_queue_is_said_before_the_body_comes(serve: Serve) -> None:
    with serve(EngineOptions(slots=1, tokens_per_slot=1024, max_waiting=0)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 5000000\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 429 ")


def test_bodies_have_room_together(serve: Serve) -> None:
    with serve(max_body_bytes=10_000, max_held_bytes=15_000) as server:
        body = {"messages": [{"role": "user", "content": "x" * 4}], "user": "x" * 8_000, "max_tokens": 1}
        with Holding(server.state.room) as other:
            other.take(10_000)
            assert check(server.chat(**body), 429, "hold 10000 of 15000 bytes")["code"] == "busy"
        assert server.chat(**body).status_code == 200
        wait_until(lambda: server.state.room.held == 0)
    with pytest.raises(OptionError, match="room for one body"):
        ServeOptions(max_body_bytes=10, max_held_bytes=9)


def test_a_body_is_gone_once_it_is_decoded(server: Running) -> None:
    async def send(message: Any) -> None:
        raise AssertionError

    with Holding(server.state.room) as holding:
        body = json.dumps({"messages": TEXT}).encode()
        call = Call(server.state, {}, send, Record("1", "POST", CHAT, ""), holding, body)
        assert call.decode(ChatBody).messages[0].content == "Hello"
    assert (call.body, call.given) == (b"", {"messages"})


def test_what_a_request_names_has_a_limit_together(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(bytes(6_000))
    sources, room, url = Sources((), [tmp_path], SourceLimits(max_bytes=10_000)), Room(), f"file://{tmp_path}/x.png"
    with Holding(room) as holding:
        assert len(asyncio.run(sources.resolve(url, "image", holding))) == room.held == 6_000
        with pytest.raises(RequestError, match="more than 10000 bytes together"):
            asyncio.run(sources.resolve(url, "image", holding))
    assert room.held == 0
    with pytest.raises(CancelledError):  # one that nobody waits for any more ends
        asyncio.run(sources.resolve(url, "image", holding))


def test_images_of_a_request_share_the_limit(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(bytes(6_000))
    with serve(allow_folders=(tmp_path,), source_limits=SourceLimits(max_bytes=10_000)) as server:
        parts = [{"type": "image_url", "image_url": f"file://{tmp_path}/x.png"}] * 2
        check(server.chat(messages=[{"role": "user", "content": parts}]), 400, "more than 10000 bytes together")


@contextmanager
def stopping(pipe: Pipeline, bundle: Path) -> Iterator[tuple[str, uvicorn.Server, threading.Thread]]:
    """A server as the command runs it, that drains for a moment; `/endless` never ends."""

    async def endless(request: StarletteRequest) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                yield bytes(100_000)

        return StreamingResponse(pieces())

    with pipe.engine(ONE) as engine:
        app = make_app([Served("tiny", pipe, engine, bundle)], ServeOptions(drain_seconds=0.2))
        app.router.routes.append(Route("/endless", endless))
        found = listen("127.0.0.1", 0)
        server, address = make_server(app, lambda: None), address_of(found)
        thread = threading.Thread(target=server.run, args=([found],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield address, server, thread
        server.force_exit = server.should_exit = True
        thread.join(20)


def test_what_outlasts_the_drain_is_ended(pipe: Pipeline, reference_bundle: Path) -> None:
    with stopping(pipe, reference_bundle) as (url, server, thread):
        answers: list[httpx2.Response] = []
        body = {"messages": TEXT, "max_tokens": 900, "ignore_eos": True, "n": 16}
        client = threading.Thread(target=lambda: answers.append(httpx2.post(url + CHAT, json=body, timeout=60)))
        client.start()
        wait_until(lambda: server.config.app.state.server.tickets)  # type: ignore[union-attr]
        server.handle_exit(signal.SIGTERM, None)
        client.join(20)
        check(answers[0], 503, "ended by the server")
        thread.join(20)
        assert not thread.is_alive()


def test_a_client_that_never_reads_keeps_no_server_alive(pipe: Pipeline, reference_bundle: Path) -> None:
    with stopping(pipe, reference_bundle) as (url, server, thread):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            client.recv(10)
            server.handle_exit(signal.SIGTERM, None)
            thread.join(20)
            assert not thread.is_alive()


def test_a_signal_before_it_began(pipe: Pipeline, reference_bundle: Path) -> None:
    with pipe.engine(ONE) as engine:
        server = make_server(make_app([Served("tiny", pipe, engine, reference_bundle)]), lambda: None)
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit


def test_figures_have_the_stalls(server: Running) -> None:
    ticket = server.engine.submit(Request(TEXT, max_new_tokens=2, ignore_eos=True))
    answer = ticket.answer(20)
    assert ticket.first_token_at is not None
    ticket.gaps_s[:] = [2.0]
    ticket.first_token_at, ticket.finished_at = ticket.submitted + 3, ticket.submitted + 5
    metrics = Metrics(())
    metrics.count_answer("x", ticket, answer)
    for name, seconds in (("time_to_first_token", 3), ("inter_token_latency", 2), ("e2e_request_latency", 5)):
        assert f'foveate:{name}_seconds_sum{{model_name="x"}} {seconds:.1f}' in metrics.text().decode()

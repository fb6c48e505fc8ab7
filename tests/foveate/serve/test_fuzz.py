"""Bodies that nobody should send, in process: none is a fault of the server, none makes it hang, and it works as before.

A number makes a body, so `make(number)` of a failure is the same again. Blocks of the long run can be chosen by `-k`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from benchmarks.hostile import Hostile, data, is_error, make, picture
from foveate.runtime import Pipeline
from foveate.runtime.scheduler import EngineOptions
from foveate.serve import Served, ServeOptions, make_app
from tests.foveate.serve.conftest import CHAT

SECONDS = 2.0
"""Most time for an answer."""
BLOCK = 5_000
GOOD = {"type": "image_url", "image_url": data(picture(84, 56))}
USUAL = {"messages": [{"role": "user", "content": [GOOD, {"type": "text", "text": "What?"}]}], "max_tokens": 6}


class Asker:
    """The application without a network, and without anybody who checks what goes in."""

    def __init__(self, app: Starlette, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop

    def ask(self, path: str, headers: list[tuple[bytes, bytes]], content: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        return self._loop.run_until_complete(self._ask(path, headers, content))

    async def _ask(self, path: str, headers: Any, content: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Any] = []
        pieces = [content[: len(content) // 2], content[len(content) // 2 :]]

        async def receive() -> dict[str, Any]:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
        }
        scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http"}
        async with asyncio.timeout(60):
            await self._app({**scope, "asgi": {"version": "3.0"}, "http_version": "1.1"}, receive, send)
        head = sent[0]
        return head["status"], dict(head["headers"]), b"".join(message["body"] for message in sent[1:])

    def usual(self) -> str:
        """The answer to a good request."""
        status, _, content = self.ask(CHAT, [(b"content-type", b"application/json")], msgspec.json.encode(USUAL))
        assert status == 200, content
        choice: str = msgspec.json.decode(content)["choices"][0]["message"]["content"]
        return choice


@pytest.fixture(scope="module")
def asker(pipe: Pipeline, reference_bundle: Path) -> Iterator[Asker]:
    loop = asyncio.new_event_loop()
    with pipe.engine(EngineOptions(slots=4, tokens_per_slot=256)) as engine:
        app = make_app([Served("tiny", pipe, engine, reference_bundle)], ServeOptions())
        yield Asker(app, loop)
        assert engine.stats().kv_tokens_used == 0
    app.state.server.sources.close()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def check(asker: Asker, one: Hostile) -> int:
    """The status of the answer, once it is a good one."""
    began = time.monotonic()
    status, headers, content = asker.ask(one.path, one.headers, one.content)
    took = time.monotonic() - began
    if took > SECONDS:  # a machine that is busy is no fault: what really takes long does so again
        began = time.monotonic()
        asker.ask(one.path, one.headers, one.content)
        took = time.monotonic() - began
    assert took <= SECONDS, f"body {one.number} took {took:.1f} s"
    kind = headers[b"content-type"].partition(b";")[0]
    if status == 200:
        assert kind in (b"application/json", b"text/event-stream"), one.number
        assert b'"code":"internal"' not in content, one.number
    else:
        late = status == 504 and b'"code":"deadline"' in content  # what it asked for
        assert late or 400 <= status < 500, (one.number, content)
        assert kind == b"application/json", one.number
        assert is_error(content), (one.number, content)
    return status


def check_all(asker: Asker, numbers: range) -> Counter[int]:
    expected, found = asker.usual(), Counter[int]()
    for number in numbers:
        found[check(asker, make(number))] += 1
        if number % 500 == 0:
            assert asker.usual() == expected, f"the answer changed before body {number}"
    assert asker.usual() == expected
    return found


def test_some(asker: Asker) -> None:
    found = check_all(asker, range(400))
    # A generator whose bodies are all refused at sight would test nothing but the parser.
    assert found[200] > 40
    assert found[400] > 100
    assert found[415]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_many(asker: Asker, block: int) -> None:
    check_all(asker, range(block * BLOCK, (block + 1) * BLOCK))

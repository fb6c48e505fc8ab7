"""A stand-in for a server of the OpenAI API, with known delays and faults; as a program, for `foveate serve`."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any


@dataclass
class StandIn:
    """What it does, and what it saw.

    Attributes:
        first_s: until the first chunk of a request's number.
        gap_s: between chunks.
        chunks: of each answer.
        serial: one request at a time.
        usage_tokens: what `usage` says; None leaves it out.
        fault: of requests whose number is odd.
        ours: whether it says it is foveate's.
        bodies: of the chat requests.
        came: when each request was there.
        wrote: when it wrote each chunk of each request.
    """

    first_s: tuple[float, ...] = (0.03,)
    gap_s: float = 0.01
    chunks: int = 4
    serial: bool = False
    usage_tokens: int | None = None
    fault: str = ""
    ours: bool = True
    models: tuple[str, ...] = ("tiny",)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    wrote: list[list[float]] = field(default_factory=list)
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.headers.append(head)
            path = head.split()[1]
            length = next(
                (int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")), 0
            )
            body = await reader.readexactly(length)
            if path.endswith("/v1/chat/completions"):
                await self._chat(json.loads(body), writer)
            else:
                self._tell(path, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _tell(self, path: str, writer: asyncio.StreamWriter) -> None:
        owner = "foveate" if self.ours else "vllm"
        known: dict[str, object] = {
            "/v1/models": {"object": "list", "data": [{"id": name, "owned_by": owner} for name in self.models]},
            "/version": {"version": "0.0"},
        }
        if path == "/metrics":
            _whole(writer, 200, b"# HELP x\nprocess_resident_memory_bytes 1.5e+08\n")
        elif path in known:
            _whole(writer, 200, json.dumps(known[path]).encode())
        else:
            _whole(writer, 404, b'{"detail": "Not Found"}')

    async def _chat(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = len(self.bodies)
        self.bodies.append(body)
        self.came.append(perf_counter())
        self.wrote.append([])
        fault = self.fault if number % 2 else ""
        if body["model"] not in self.models:
            _whole(writer, 404, b'{"error": {"message": "there is no such model", "code": "model_not_found"}}')
        elif fault.isdigit():
            _whole(writer, int(fault), b'{"error": {"message": "come back later", "type": "busy"}}')
        elif self.serial:
            async with self._lock:
                await self._stream(number, fault, body, writer)
        else:
            await self._stream(number, fault, body, writer)

    async def _stream(self, number: int, fault: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        _event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        await asyncio.sleep(self.first_s[number % len(self.first_s)])
        for place in range(0 if fault == "empty" else self.chunks):
            if place:
                await asyncio.sleep(self.gap_s)
            self.wrote[number].append(perf_counter())
            _event(writer, {"choices": [{"index": 0, "delta": {"content": f" w{place}"}, "finish_reason": None}]})
            if fault in ("cut", "break", "error", "garbage", "stall"):
                break
        if fault == "stall":
            await asyncio.sleep(60)
        if fault == "break":
            writer.transport.abort()
        if fault == "error":
            _event(writer, {"error": {"message": "the graph fell over", "type": "server_error"}})
        if fault == "garbage":
            _chunk(writer, b"data: {nonsense\n\n")
        if fault in ("", "empty"):
            own = {"visual_tokens": 64, "kept_tokens": round(64 * body.get("foveate", {}).get("keep", 1))}
            _event(
                writer,
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **({"foveate": own} if self.ours else {})},
            )
            if self.usage_tokens is not None:
                usage = {"prompt_tokens": 70, "completion_tokens": self.usage_tokens, "total_tokens": 70 + self.usage_tokens}
                _event(writer, {"choices": [], "usage": usage})
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    async def serve(self, port: int, ready: Any) -> None:
        self._lock = asyncio.Lock()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self.handle, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._loop = asyncio.get_running_loop()
        ready()
        await self._stopped.wait()
        server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)


def _whole(writer: asyncio.StreamWriter, status: int, content: bytes) -> None:
    writer.write(f"HTTP/1.1 {status} Said\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)


def _event(writer: asyncio.StreamWriter, content: object) -> None:
    _chunk(writer, f"data: {json.dumps(content)}\n\n".encode())


def _chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


@contextmanager
def running(server: StandIn) -> Iterator[StandIn]:
    """In a thread."""
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(0, ready.set)))
    thread.start()
    try:
        assert ready.wait(30)
        yield server
    finally:
        server.stop()
        thread.join(30)


if __name__ == "__main__":
    one = StandIn(usage_tokens=4)
    print("words:", *sys.argv[1:], file=sys.stderr, flush=True)
    asyncio.run(one.serve(0, lambda: print(f"serving on {one.url}", flush=True)))

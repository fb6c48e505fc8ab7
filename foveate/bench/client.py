"""A client of the OpenAI API that takes little of the machine: h11 over asyncio's streams, a connection for each request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import msgspec

from foveate.bench.results import Sent
from foveate.engines import OptionError
from foveate.engines.errors import reason_of, shorten
from foveate.engines.system.packages import needed_package

with needed_package("it sends the requests", "bench"):
    import h11

_READ_BYTES = 1 << 16
_MOST_BYTES = 1 << 24
"""Of an answer that is no stream, and of one line of a stream."""


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        host: name or number.
        port: of TCP.
        encrypted: TLS, with the system's certificates.
        path: in front of `/v1`; empty for most servers.
        headers: of every request.
    """

    host: str
    port: int
    encrypted: bool = False
    path: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> Address:
        """From `http://host:port`, also with the `/v1` that clients are configured with.

        Raises:
            OptionError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise OptionError(f"'{shorten(url)}' is no URL: {error}. Write it like http://127.0.0.1:8000.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise OptionError(f"'{shorten(url)}' is no URL of a server. Write it like http://127.0.0.1:8000.")
        encrypted = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        key = (("Authorization", f"Bearer {api_key}"),) if api_key else ()
        return cls(parts.hostname, port or (443 if encrypted else 80), encrypted, path, key)


class ServerError(Exception):
    """A request that was not answered whole.

    Args:
        kind: which errors are counted together.
        message: what the server or the system says.
        status: of HTTP; 0 where there was none.
    """

    def __init__(self, kind: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status


class _Response:
    """A status, and the bytes of the body as they come."""

    def __init__(self, status: int, connection: h11.Connection, reader: asyncio.StreamReader) -> None:
        self.status, self._connection, self._reader = status, connection, reader

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await _next_event(self._connection, self._reader), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def read(self) -> bytes:
        """The whole body; what is too long is left out."""
        found = bytearray()
        async for data in self:
            found += data
            if len(found) > _MOST_BYTES:
                break
        return bytes(found)


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_READ_BYTES))
    return event


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes milliseconds."""
    return ssl.create_default_context()


@asynccontextmanager
async def _exchange(address: Address, method: str, path: str, body: bytes = b"") -> AsyncIterator[_Response]:
    """Sends a request; what fails before and meanwhile is a `ServerError`."""
    try:
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=_tls() if address.encrypted else None)
    except OSError as error:
        raise ServerError("not reachable", error.strerror or reason_of(error)) from error
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [
            ("Host", f"{address.host}:{address.port}"),
            ("Connection", "close"),
            ("Accept", "*/*"),
            *address.headers,
            *([("Content-Type", "application/json"), ("Content-Length", str(len(body)))] if body else []),
        ]
        request = h11.Request(method=method, target=address.path + path, headers=headers)
        events = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        writer.write(b"".join(connection.send(event) or b"" for event in events))
        event = await _next_event(connection, reader)
        while isinstance(event, h11.InformationalResponse):
            event = await _next_event(connection, reader)
        yield _Response(event.status_code, connection, reader)
    except (OSError, h11.ProtocolError, asyncio.IncompleteReadError) as error:
        raise ServerError("connection broke", reason_of(error)) from error
    finally:
        writer.close()


async def get(address: Address, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Status and body.

    Raises:
        ServerError: there was no answer.
    """
    try:
        async with asyncio.timeout(timeout_s), _exchange(address, "GET", path) as response:
            return response.status, await response.read()
    except TimeoutError as error:
        raise ServerError("timeout", f"no answer within {timeout_s:g} s") from error


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Own(msgspec.Struct):
    """What foveate says of its own."""

    visual_tokens: int | None = None
    kept_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    foveate: _Own | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)


@dataclass
class _Stream:
    """An answer as it comes in.

    Attributes:
        times: of each chunk of text, in seconds of `perf_counter`.
        ended: whether the server said that it is complete.
    """

    times: list[float] = field(default_factory=list)
    usage: _Usage | None = None
    own: _Own | None = None
    ended: bool = False

    def take(self, line: bytes, now: float) -> None:
        """A line of the stream of events."""
        if not line.startswith(b"data:"):
            return
        content = line[5:].strip()
        if content == b"[DONE]":
            self.ended = True
            return
        try:
            chunk = _DECODER.decode(content)
        except msgspec.DecodeError as error:
            raise ServerError("not the API", f"{error} in {shorten(content.decode(errors='replace'))}", 200) from error
        if chunk.error is not None:
            raise ServerError("error in the stream", _message(chunk.error), 200)
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None and (delta.content or delta.reasoning_content or delta.reasoning):
                self.times.append(now)
            self.ended = self.ended or choice.finish_reason is not None
        self.usage, self.own = chunk.usage or self.usage, chunk.foveate or self.own


def decoded(content: bytes) -> Any:
    """JSON, or where it is none the text."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode(errors="replace")


def _message(found: Any) -> str:
    """What an error says: the message of the API's form, or whatever is there."""
    for name in ("error", "message", "detail"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return shorten(" ".join(str(found).split()), 300)


@dataclass
class Client:
    """Sends chat requests and notes when what comes back.

    Attributes:
        address: of the server.
        timeout_s: of a request, from when it is due.
        error_examples: the first message of each kind of error.
    """

    address: Address
    timeout_s: float
    error_examples: dict[str, str] = field(default_factory=dict)

    async def send(self, body: bytes, picture: bool, due: float, start: float) -> Sent:
        """One request, streamed; an error is part of what it gives.

        Args:
            body: JSON with `"stream": true`.
            picture: whether it has an image or a video.
            due: when it was to be sent, in seconds of `perf_counter`.
            start: of the point, likewise.
        """
        sent, stream, failed = perf_counter(), _Stream(), None
        status = 200
        try:
            async with asyncio.timeout(due + self.timeout_s - sent):
                await self._read(body, stream)
        except TimeoutError:
            failed = ServerError("timeout", f"no whole answer within {self.timeout_s:g} s")
        except ServerError as error:
            failed = error
        end = perf_counter()
        if failed is None and not stream.ended:
            failed = ServerError("cut off", "the stream ended without a finish_reason", 200)
        # Tokens that are no text are an answer too: with ignore_eos there may be none else.
        if failed is None and not stream.times and not (stream.usage and stream.usage.completion_tokens):
            failed = ServerError("empty answer", "the stream has no text", 200)
        if failed is not None:
            status = failed.status
            self.error_examples.setdefault(failed.kind, str(failed))
        times = stream.times
        counted = stream.usage.completion_tokens if stream.usage else None
        return Sent(
            due_ms=_ms(due - start),
            lag_ms=_ms(sent - due),
            picture=picture,
            status=status,
            error=failed.kind if failed else "",
            ttft_ms=_ms(times[0] - due) if times else None,
            gaps_ms=[_ms(later - earlier) for earlier, later in pairwise(times)],
            end_to_end_ms=_ms(end - due),
            chunks=len(times),
            output_tokens=len(times) if counted is None else counted,
            by_usage=counted is not None,
            prompt_tokens=stream.usage.prompt_tokens if stream.usage else None,
            visual_tokens=stream.own.visual_tokens if stream.own else None,
            kept_tokens=stream.own.kept_tokens if stream.own else None,
        )

    async def _read(self, body: bytes, stream: _Stream) -> None:
        async with _exchange(self.address, "POST", "/v1/chat/completions", body) as response:
            if response.status != 200:
                raise ServerError(f"HTTP {response.status}", _message(decoded(await response.read())), response.status)
            rest = b""
            async for data in response:
                now = perf_counter()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    stream.take(line, now)
                if len(rest) > _MOST_BYTES:
                    raise ServerError("not the API", "a line of the stream has no end", 200)
            stream.take(rest, perf_counter())


def _ms(seconds: float) -> float:
    """To a microsecond."""
    return round(1000 * seconds, 3)

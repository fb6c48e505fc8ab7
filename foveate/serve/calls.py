"""One HTTP request on its way: its body, its answer, and the client that may go away at any time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from foveate.engines.errors import BusyError
from foveate.runtime import Answer
from foveate.runtime.scheduler import Ticket
from foveate.serve.asking import Asked
from foveate.serve.errors import GONE, HttpError, is_fault, translate, unreadable
from foveate.serve.metrics import Metrics
from foveate.serve.options import Served, ServeOptions
from foveate.serve.room import Holding, Room
from foveate.serve.schema import Body, Own
from foveate.serve.sources import Sources

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AnyBody = TypeVar("AnyBody", bound=Body)

MOST_MARKS = 100_000
"""Commas and opening brackets of a body, and so about its values: nobody else is heard while they are decoded."""
_MARKS = (b",", b"[", b"{")
LOG = logging.getLogger("foveate.serve")
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_encode = msgspec.json.Encoder().encode


@dataclass
class Record:
    """What the log says of a request: nothing that anybody wrote.

    Attributes:
        id: of the request, the client's own where it has a usable one.
        path: of the endpoint.
        status: of the answer.
        facts: model and tokens, where there are any.
    """

    id: str
    method: str
    path: str
    client: str
    status: int = 0
    started: float = field(default_factory=time.perf_counter)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether the head of the answer is sent."""
        return self.status != 0

    def line(self) -> str:
        """As JSON."""
        milliseconds = round(1e3 * (time.perf_counter() - self.started), 2)
        facts = {
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": milliseconds,
            **self.facts,
        }
        return _encode(facts).decode()


@dataclass
class State:
    """What all requests share.

    Attributes:
        served: the bundles, by name.
        draining: no new work is taken.
        active: requests for work that are not answered yet.
        tickets: of those that an engine has.
        room: for what they hold.
    """

    served: Mapping[str, Served]
    options: ServeOptions
    sources: Sources
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    active: int = 0
    tickets: set[Ticket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.room = Room(self.options.max_held_bytes)

    @property
    def full(self) -> bool:
        """Whether every engine would refuse a request."""
        return all(one.engine.full for one in self.served.values())

    def find(self, model: str | None) -> Served:
        """The bundle of this name; the only one, where none is named.

        Raises:
            HttpError: there is none, or a name is needed.
        """
        if model is None:
            if len(self.served) == 1:
                return next(iter(self.served.values()))
            names = ", ".join(self.served)
            raise HttpError(400, f"there are several models: {names}. Name one of them.", "model", "missing_parameter")
        found = self.served.get(model)
        if found is None:
            names = ", ".join(self.served)
            raise HttpError(
                404, f"there is no model of this name, there is {names}. Name one of them.", "model", "model_not_found"
            )
        return found

    @property
    def stuck(self) -> bool:
        """Whether an engine has work and did nothing for it for too long."""
        most = 1e3 * self.options.stuck_after_s
        return any(one.engine.stats().idle_ms > most for one in self.served.values())

    def drain(self) -> None:
        """Takes no new work."""
        self.draining = True
        for one in self.served.values():
            one.engine.drain()

    def cancel(self) -> None:
        """Ends what is not answered yet."""
        for ticket in self.tickets:
            ticket.cancel()


@dataclass
class Call:
    """One request, and how it is answered.

    Attributes:
        body: as it came; gone once it is decoded.
        given: the fields that it sets.
    """

    state: State
    scope: Scope
    send: Send
    record: Record
    holding: Holding
    body: bytes | bytearray = b""
    given: frozenset[str] = frozenset()

    def decode(self, kind: type[AnyBody]) -> AnyBody:
        """The body; once.

        Raises:
            HttpError: it is not what the schema says, or too much of it.
        """
        marks = sum(map(self.body.count, _MARKS))
        if marks > MOST_MARKS:
            raise HttpError(413, f"the body has {marks} commas and opening brackets, the limit is {MOST_MARKS}. Send less.")
        try:
            body = _decoder(kind).decode(self.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise unreadable(error, kind) from None
        self.body = b""
        self.given = frozenset(_set_fields(body))
        return body

    def find_free(self, model: str | None) -> Served:
        """The bundle of this name, if it takes requests; raises what `State.find` does too.

        Raises:
            BusyError: too many wait.
        """
        served = self.state.find(model)
        if served.engine.full:
            raise too_many()
        return served

    @contextmanager
    def submitted(self, asked: Asked, served: Served) -> Iterator[list[Ticket]]:
        """Gives requests to the engine; behind it they are over, whoever left and why."""
        self.record.facts["model"] = served.name
        tickets: list[Ticket] = []
        try:
            for request in asked.requests:
                tickets.append(
                    served.engine.submit(
                        request,
                        client=self.record.client,
                        priority=asked.priority,
                        deadline_ms=asked.deadline_ms,
                        flexible=asked.flexible,
                    )
                )
            self.state.tickets.update(tickets)
            yield tickets
        finally:
            self.state.tickets.difference_update(tickets)
            for ticket in tickets:
                ticket.cancel()

    def note(self, served: Served, tickets: Sequence[Ticket], answers: Sequence[Answer]) -> None:
        """Counts finished answers, in the log and for Prometheus."""
        for ticket, answer in zip(tickets, answers, strict=True):
            self.state.metrics.count_answer(served.name, ticket, answer)
        self.record.facts |= {
            "prompt_tokens": answers[0].prompt_tokens,
            "completion_tokens": sum(len(answer.tokens) for answer in answers),
            "visual_tokens": answers[0].selection.num_visual_tokens,
            "kept_tokens": len(answers[0].selection.keep_indices),
            "finish_reason": answers[0].finish_reason,
        }

    async def reply(self, body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answers with JSON."""
        await self.reply_bytes(_encode(body), _JSON + [(k.encode(), v.encode()) for k, v in (headers or {}).items()], status)

    async def reply_bytes(self, content: bytes, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
        """Answers with anything."""
        length = (b"content-length", str(len(content)).encode())
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await self.send({"type": "http.response.body", "body": content})

    async def reply_error(self, error: Exception) -> None:
        """Answers with what went wrong; in a stream that began as its last event."""
        failure = translate(error, self.given)
        if isinstance(error, BusyError) and self.state.draining:
            failure = refuse_drained()
        if failure.status >= 500 and is_fault(error):
            LOG.error("request %s failed", self.record.id, exc_info=error)
        self.record.facts["error"] = failure.failure.error.code
        if not self.record.begun:
            await self.reply(failure.failure, failure.status, failure.headers)
            return
        await self.send({"type": "http.response.body", "body": event(failure.failure)})

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Answers with events as they come. What fails before the first one is an answer of its own."""
        first = await anext(events)
        await self.send({"type": "http.response.start", "status": 200, "headers": list(_EVENTS)})
        await self.send({"type": "http.response.body", "body": first, "more_body": True})
        async for content in events:
            await self.send({"type": "http.response.body", "body": content, "more_body": True})
        await self.send({"type": "http.response.body", "body": b""})


def event(body: msgspec.Struct | Mapping[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"data: " if name is None else b"event: " + name.encode() + b"\ndata: "
    return head + _encode(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def refuse_drained() -> HttpError:
    """What new requests are told while the running ones finish."""
    return HttpError(
        503, "the server is about to stop and takes no new requests. Send it to another one.", code="draining", retry=True
    )


def too_many() -> BusyError:
    """What new requests are told while too many wait."""
    return BusyError("too many requests wait already. Ask again later.")


def _set_fields(body: Body) -> Iterator[str]:
    """Names of the fields that a body sets, with a dot before those of a field's own."""
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if isinstance(value, Own):
            yield from (f"{name}.{one}" for one in _set_fields(value))
        elif value is not None:
            yield name


_decoders: dict[type[Body], msgspec.json.Decoder[Any]] = {}


def _decoder(kind: type[AnyBody]) -> msgspec.json.Decoder[AnyBody]:
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind)
    return _decoders[kind]


async def read_body(scope: Scope, receive: Receive, options: ServeOptions, holding: Holding) -> bytearray | None:
    """The body; None where the client went away.

    Raises:
        HttpError: it is too large, no JSON, or comes too slowly.
        BusyError: there is no room for it.
    """
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise HttpError(415, "the body is not declared as JSON. Send the header content-type: application/json.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HttpError(415, "the body is compressed. Send it as it is.")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > options.max_body_bytes:
        raise _too_large(options)
    content = bytearray()
    try:
        async with asyncio.timeout(options.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                piece = message.get("body", b"")
                if len(content) + len(piece) > options.max_body_bytes:
                    raise _too_large(options)
                holding.take(len(piece))
                content += piece
                if not message.get("more_body", False):
                    return content
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {options.body_seconds:g} s. Send it faster.", retry=True) from None


def _too_large(options: ServeOptions) -> HttpError:
    return HttpError(413, f"the body has more than {options.max_body_bytes} bytes, which is the limit. Send less.")


async def until_gone(receive: Receive, work: Awaitable[None]) -> bool:
    """Does the work, and stops it where the client goes away; whether it was done."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        await task
        return True
    finally:
        for one in (task, watcher):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


__all__ = ["DONE", "GONE", "LOG", "Call", "Record", "State", "event", "read_body", "refuse_drained", "too_many", "until_gone"]

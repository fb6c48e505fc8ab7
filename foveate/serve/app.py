"""The application: which endpoint answers what, and what holds for all of them."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hmac import compare_digest
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from foveate.serve import facts, generating
from foveate.serve.calls import (
    GONE,
    LOG,
    Call,
    Receive,
    Record,
    Scope,
    Send,
    State,
    read_body,
    refuse_drained,
    too_many,
    until_gone,
)
from foveate.serve.calls import Message as AsgiMessage
from foveate.serve.errors import HttpError
from foveate.serve.metrics import Metrics
from foveate.serve.openapi import OPERATIONS, Operation, describe_api
from foveate.serve.options import Served, ServeOptions
from foveate.serve.room import Holding
from foveate.serve.sources import Sources

PAGE = Path(__file__).parent / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_OPEN = re.compile(r"/(health|ready|version|openapi\.json|page/.*)?")
"""What needs no key: it says nothing of what was asked, and a page can't send one."""
Handler = Callable[[Call], Awaitable[None]]

HANDLERS: Mapping[str, Handler] = {
    "chat": generating.chat,
    "completion": generating.completion,
    "respond": generating.respond,
    "models": facts.models,
    "model": facts.model,
    "tokenize": facts.tokenize,
    "detokenize": facts.detokenize,
    "health": facts.health,
    "ready": facts.ready,
    "metrics": facts.metrics,
    "foveate_version": facts.foveate_version,
}
"""By the `id` of their operation."""


def make_app(served: Sequence[Served], options: ServeOptions | None = None) -> Starlette:
    """The application that serves bundles; `app.state.server` is its `State`.

    Args:
        served: the bundles; whoever opened them closes them.
        options: what is allowed.
    """
    options = options or ServeOptions()
    sources = Sources(options.allow_hosts, options.allow_folders, options.source_limits)
    state = State({one.name: one for one in served}, options, sources, Metrics(served))
    described = describe_api(tuple(state.served), bool(options.api_keys))

    async def openapi(call: Call) -> None:
        await call.reply_bytes(described, [(b"content-type", b"application/json")])

    handlers = {**HANDLERS, "openapi": openapi}
    routes: list[Any] = [
        Route(_starlette_path(one.path), Endpoint(handlers[one.id], one, state), methods=[one.method]) for one in OPERATIONS
    ]
    routes += [Route("/", _page), Mount("/page", StaticFiles(directory=PAGE, check_dir=False))]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, state=state)],
        exception_handlers={HTTPException: _refuse},  # type: ignore[dict-item]
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _starlette_path(path: str) -> str:
    """Names of models may have slashes."""
    return path.replace("{model}", "{model:path}")


async def _page(request: StarletteRequest) -> Response:
    """`GET /`"""
    index = PAGE / "index.html"
    if not index.is_file():
        raise HTTPException(404)
    return FileResponse(index, headers={"content-security-policy": _POLICY, "x-content-type-options": "nosniff"})


async def _refuse(request: StarletteRequest, error: HTTPException) -> Response:
    """What the router refuses, as every other error."""
    remedy = "See /openapi.json for what there is."
    if error.status_code == 405:
        raise HttpError(405, f"this path is not for {request.method}. {remedy}", headers=error.headers)
    raise HttpError(error.status_code, f"there is nothing at this path. {remedy}", headers=error.headers)


class Endpoint:
    """An operation as an ASGI application: reads the body, answers, and stops at once where the client goes away."""

    def __init__(self, handler: Handler, operation: Operation, state: State) -> None:
        self._handler = handler
        self._operation = operation
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["foveate.record"]
        record.path = self._operation.path
        with Holding(self._state.room) as holding:
            call = Call(self._state, scope, send, record, holding)
            if self._operation.body is None:
                await self._answer(call)
                return
            if self._state.draining:
                raise refuse_drained()
            if self._operation.streams and self._state.full:  # before its body takes memory
                raise too_many()
            self._state.active += 1
            try:
                if not await self._work(call, receive):
                    record.status = GONE
            finally:
                self._state.active -= 1

    async def _work(self, call: Call, receive: Receive) -> bool:
        """Whether the client stayed to the end."""
        body = await read_body(call.scope, receive, self._state.options, call.holding)
        if body is None:
            return False
        call.body = body
        del body  # the call gives it up once it is decoded
        return await until_gone(receive, self._answer(call))

    async def _answer(self, call: Call) -> None:
        try:
            await self._handler(call)
        except Exception as error:
            await call.reply_error(error)


class Gate:
    """Around everything: ids, keys, the log, and errors that nothing else answered."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state
        self._keys = [hashlib.sha256(key.encode()).digest() for key in state.options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(scope), scope["method"], "(none)", (scope.get("client") or ("", 0))[0])
        scope["foveate.record"] = record
        mark = (b"x-request-id", record.id.encode())

        async def send_marked(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), mark]
            await send(message)

        try:
            self._check_key(scope, record)
            await self._app(scope, receive, send_marked)
        except Exception as error:
            await Call(self._state, scope, send_marked, record, Holding(self._state.room)).reply_error(error)
        finally:
            self._state.metrics.count_http(record.path, record.status)
            LOG.info(record.line())

    def _check_key(self, scope: Scope, record: Record) -> None:
        """Raises HttpError where a key is needed and none of them was brought; every key is compared, in constant time."""
        if not self._keys or _OPEN.fullmatch(scope["path"]):
            return
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        matches = [compare_digest(digest, one) for one in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            fact = "there is no API key, or none that this server knows. Send the header Authorization: Bearer KEY."
            raise HttpError(401, fact, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        record.client = f"key {matches.index(True)}"


def _request_id(scope: Scope) -> str:
    """The client's own, where it is one that a log can hold."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex

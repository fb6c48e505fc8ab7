"""What there is, for programs: `/openapi.json`, made from the classes of bodies and replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec

from foveate.serve import replies, schema
from foveate.serve.errors import Failure

_ALWAYS = (500,)
_WITH_BODY = (400, 404, 408, 413, 415, 429, 503)
_GENERATING = (504,)
STATUSES = {
    400: "Something in the request can't be used; `param` names it",
    401: "A key is needed",
    404: "There is no such model",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "Too many requests wait, or hold too many bytes; `Retry-After` says when to ask again",
    500: "The server failed; its log says why",
    503: "The server is about to stop, is stuck, or lacks memory",
    504: "The request was not done within its `deadline_ms`",
}
"""What a status means."""


@dataclass(frozen=True)
class Operation:
    """An endpoint.

    Attributes:
        id: of its handler.
        summary: in a line.
        reply: class of the answer, or its media type where it is no JSON of ours.
        body: class of the request's body; None where it takes none.
        event: class of the events of a stream, or `text` for several kinds; empty where it does not stream.
        errors: statuses other than those that all with or without a body have.
    """

    id: str
    method: str
    path: str
    summary: str
    reply: type[msgspec.Struct] | str
    body: type[schema.Body] | None = None
    streams: bool = False
    errors: tuple[int, ...] = ()

    @property
    def statuses(self) -> tuple[int, ...]:
        """All of its errors but 401."""
        return tuple(sorted({*_ALWAYS, *self.errors, *(_WITH_BODY if self.body else ())}))


OPERATIONS = (
    Operation(
        "chat",
        "POST",
        "/v1/chat/completions",
        "Answer a chat",
        replies.ChatCompletion,
        schema.ChatBody,
        True,
        _GENERATING,
    ),
    Operation(
        "completion",
        "POST",
        "/v1/completions",
        "Go on with a text",
        replies.Completion,
        schema.CompletionBody,
        True,
        _GENERATING,
    ),
    Operation(
        "respond",
        "POST",
        "/v1/responses",
        "Answer a chat, in the form of responses; no state is kept",
        replies.Response,
        schema.ResponsesBody,
        True,
        _GENERATING,
    ),
    Operation("models", "GET", "/v1/models", "The bundles", replies.ModelList),
    Operation("model", "GET", "/v1/models/{model}", "One of them", replies.Model, errors=(404,)),
    Operation("tokenize", "POST", "/tokenize", "The tokens of a text or a chat", replies.Tokens, schema.TokenizeBody),
    Operation("detokenize", "POST", "/detokenize", "The text of tokens", replies.Detokenized, schema.DetokenizeBody),
    Operation("health", "GET", "/health", "Whether it works: 503 where it is stuck", replies.Health),
    Operation("ready", "GET", "/ready", "Whether it takes requests: 503 where it drains or is stuck", replies.Health),
    Operation("metrics", "GET", "/metrics", "Figures for Prometheus", "text/plain"),
    Operation("foveate_version", "GET", "/version", "Of foveate", replies.Version),
    Operation("openapi", "GET", "/openapi.json", "This document", "application/json"),
)
"""Every endpoint but the page at `/`."""


def describe_api(models: Sequence[str], keys: bool) -> bytes:
    """The document.

    Args:
        models: names of the bundles.
        keys: whether a key is needed.
    """
    types = [kind for one in OPERATIONS for kind in (one.body, one.reply) if isinstance(kind, type)]
    _, schemas = msgspec.json.schema_components([*types, Failure], ref_template="#/components/schemas/{name}")
    _name_models(schemas, models)
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, models, keys)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "foveate",
            "version": version("foveate"),
            "summary": "Chats about images and videos, with fewer visual tokens",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}),
        },
    }
    return msgspec.json.encode(document)


def _operation(one: Operation, models: Sequence[str], keys: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"operationId": one.id, "summary": one.summary}
    if "{model}" in one.path:
        found["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
        ]
    if one.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(one.body)}}}
    statuses = set(one.statuses) | ({401} if keys and one.id not in OPEN else set())
    failed = {"application/json": {"schema": _ref(Failure)}}
    done = "Done; with `stream` as server-sent events" if one.streams else "Done"
    found["responses"] = {"200": {"description": done, "content": _content(one)}} | {
        str(status): {"description": STATUSES[status], "content": failed} for status in sorted(statuses)
    }
    if one.reply is replies.Health:
        found["responses"]["503"] = {"description": STATUSES[503], "content": _content(one)}
    if keys and one.id not in OPEN:
        found["security"] = [{"key": []}]
    return found


OPEN = ("health", "ready", "foveate_version", "openapi")
"""Operations that need no key."""


def _content(one: Operation) -> dict[str, Any]:
    if isinstance(one.reply, str):
        return {one.reply: {"schema": {"type": "object" if one.reply == "application/json" else "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": _ref(one.reply)}}
    if one.streams:
        content["text/event-stream"] = {}  # OpenAPI has no word for what an event is
    return content


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _name_models(schemas: Mapping[str, Any], models: Sequence[str]) -> None:
    """Bodies name one of the models; where there are several they have to."""
    for one in OPERATIONS:
        if one.body is None:
            continue
        facts = schemas[one.body.__name__]
        given = facts["properties"]["model"]
        named = {"enum": list(models), "type": "string"}
        alone = len(models) == 1
        facts["properties"]["model"] = {
            "description": given["description"],
            **({"anyOf": [named, {"type": "null"}], "default": None} if alone else named),
        }
        if not alone:
            facts["required"] = ["model", *facts.get("required", ())]


__all__ = ["OPERATIONS", "STATUSES", "Operation", "describe_api"]

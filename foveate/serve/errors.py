"""What went wrong, as clients read it: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from http import HTTPStatus

import msgspec
from msgspec import inspect as kinds

from foveate.engines import FoveateError, MachineError, MissingPackageError, OptionError, RequestError
from foveate.engines.errors import BusyError, CancelledError, DeadlineError, shown
from foveate.serve.schema import NotDone

GONE = 499
"""What the log says where nobody was there any more to be answered."""
_RETRY_AFTER_S = 1
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_PARAMS = {
    "keep": ("foveate.keep",),
    "encode": ("foveate.encode",),
    "redundancy": ("foveate.redundancy",),
    "select": ("foveate.select",),
    "min_retained": ("foveate.min_retained",),
    "fps": ("foveate.fps",),
    "max_frames": ("foveate.max_frames",),
    "frame_rule": ("foveate.frame_rule",),
    "max_visual_tokens": ("foveate.max_visual_tokens",),
    "min_pixels": ("foveate.min_pixels",),
    "max_pixels": ("foveate.max_pixels",),
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "limits": ("messages",),
    "video_limits": ("messages",),
}
"""Fields of requests that have other names in bodies; the others are called alike."""
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*)`", re.DOTALL)


class Detail(msgspec.Struct, frozen=True):
    """What went wrong.

    Attributes:
        message: fact, expectation, remedy.
        type: the kind of error.
        param: the field of the body that it is about.
        code: a word for programs.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(msgspec.Struct, frozen=True):
    """The body of every answer that is an error."""

    error: Detail


class HttpError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: see `Detail`.
        param: see `Detail`.
        code: see `Detail`; None takes the status' own name.
        retry: whether the same request may be answered later. Clients that ask again by themselves are told so.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.failure = Failure(Detail(message, kind, param, code or _name(status)))
        self.headers = dict(headers or {})
        if retry:
            self.headers["retry-after"] = str(_RETRY_AFTER_S)
        else:
            self.headers["x-should-retry"] = "false"


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_")


INTERNAL = "the server failed at this request, and its log says why. Tell its operator the x-request-id."


def translate(error: Exception, given: Set[str] = frozenset()) -> HttpError:
    """The answer to what a request ended with.

    Args:
        error: what was raised.
        given: the fields that the body sets: of several that the error is about, it names one of these.
    """
    message = str(error)
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError | OptionError):
        params = [param for name in error.options for param in _PARAMS.get(name, (name,))]
        params = [param for param in params if param in given] + params
        return HttpError(400, message, params[0] if params else None, "invalid_value")
    if isinstance(error, BusyError):
        return HttpError(429, message, code="busy", retry=True)
    if isinstance(error, DeadlineError):
        return HttpError(504, message, "foveate.deadline_ms", "deadline")
    if isinstance(error, CancelledError):
        return HttpError(503, "the request was ended by the server. Send it again.", code="cancelled", retry=True)
    if isinstance(error, MachineError):
        return HttpError(503, message, code="out_of_memory", retry=True)
    if isinstance(error, MissingPackageError):
        fact = message.partition(". ")[0]
        return HttpError(400, f"this server can't do that: {fact}. Leave it out, or ask its operator.", code="not_done")
    return HttpError(500, INTERNAL, code="internal")


def is_fault(error: Exception) -> bool:
    """Whether the log has to say more about it than its answer does."""
    expected = HttpError | RequestError | OptionError | BusyError | DeadlineError | CancelledError
    return not isinstance(error, expected) or not isinstance(error, FoveateError | HttpError)


def unreadable(error: Exception, body: type[msgspec.Struct]) -> HttpError:
    """The answer to a body that is no JSON, or not what the schema says."""
    if isinstance(error, RecursionError):
        return HttpError(400, "the body is nested too deeply to be read. Send one that is not.", code="invalid_json")
    if not isinstance(error, msgspec.ValidationError):
        return HttpError(
            400, f"the body can't be read as JSON: {error}. Send a whole JSON object in UTF-8.", code="invalid_json"
        )
    text = str(error)
    found = _AT.search(text)
    path, fact = (found["path"], text[: found.start()]) if found else ("", text)
    if unknown := _UNKNOWN.search(fact):
        name = unknown["name"] if len(unknown["name"]) <= 100 else shown(unknown["name"])
        param = f"{path}.{name}" if path else name
        return HttpError(400, f"there is no field '{param}' here. Leave it out.", param, "unknown_parameter")
    name = path.rpartition(".")[2].partition("[")[0]
    if fact.startswith("Expected `null`") or name in _undone(body):
        return HttpError(400, f"'{path}' is not done here: {fact}. Leave it out.", path, "unsupported_parameter")
    about = f"'{path}' is unusable" if path else "the body is unusable"
    return HttpError(400, f"{about}: {fact}. See /openapi.json.", path or None, "invalid_value")


def _undone(body: type[msgspec.Struct]) -> set[str]:
    """Names of fields that are known and not done."""
    info = kinds.type_info(body)
    assert isinstance(info, kinds.StructType)
    return {field.encode_name for field in info.fields if field.encode_name in ("tools", "functions", "echo", "best_of")}


__all__ = ["GONE", "Detail", "Failure", "HttpError", "NotDone", "is_fault", "translate", "unreadable"]

"""Every error: its status, its form, and what a client is to do. Nothing that would change an answer is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.engines import BackendError, MachineError
from foveate.runtime.scheduler import EngineOptions
from foveate.serve.schema import ChatBody
from tests.foveate.serve.conftest import ASK, CHAT, IMAGE, TEXT, Running, Serve, wait_until

IGNORED = {"store": True, "metadata": {"a": "b"}, "user": "me", "service_tier": "auto", "safety_identifier": "x"}
IGNORED |= {"prompt_cache_key": "k", "parallel_tool_calls": False, "tools": [], "tool_choice": "none", "modalities": ["text"]}


def check(response: httpx2.Response, status: int, *parts: str, param: str | None = None) -> dict[str, Any]:
    """The error of a response, which has OpenAI's form."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert all(part in error["message"] for part in parts), error
    assert error["param"] == param, error
    assert ("retry-after" in response.headers) != (response.headers.get("x-should-retry") == "false")
    assert "Traceback" not in response.text
    assert "/work" not in response.text
    found: dict[str, Any] = error
    return found


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"surprise": 1}, "surprise", "there is no field 'surprise' here"),
        ({"foveate": {"surprise": 1}}, "foveate.surprise", "there is no field"),
        ({"messages": []}, "messages", "length >= 1"),
        ({"messages": "Hello"}, "messages", "Expected `array`"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role", "Invalid enum value 'owner'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type", "'audio'"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls", "is not done here"),
        ({"tools": [{"type": "function"}]}, "tools", "is not done here"),
        ({"audio": {"voice": "x"}}, "audio", "is not done here"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "is not done here"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": 17}, "n", "<= 16"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"temperature": "hot"}, "temperature", "got `str`"),
        ({"top_p": 0.5}, "temperature", "do nothing at temperature 0"),
        ({"top_logprobs": 2}, "top_logprobs", "without logprobs"),
        ({"stream_options": {}}, "stream_options", "without stream"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "expected one of them"),
        ({"max_tokens": 1_000_000}, "max_tokens", "the limit is"),
        ({"max_completion_tokens": 1_000_000}, "max_completion_tokens", "the limit is"),
        ({"max_tokens": 1_000_000, "foveate": {"keep": 0.5}}, "foveate.keep", "the limit is"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]", "<= 100"),
        ({"logit_bias": {"99999999": 1}}, None, "names token 99999999"),
        ({"presence_penalty": 2.5}, "presence_penalty", "<= 2"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
        ({"foveate": {"keep": 0}}, "foveate.keep", "> 0"),
        ({"foveate": {"keep": "auto", "keep_tokens": 5}}, "foveate.keep_tokens", "beside foveate.keep 'auto'"),
        ({"foveate": {"select": "surprise"}}, "foveate.select", "there is no selector 'surprise'"),
        ({"foveate": {"keep": 0.5, "mass": 0.5}}, None, "expected one of them"),
        ({"messages": [{"role": "user", "content": "x" * 2_000_000}]}, None, "more than 1024 tokens can hold"),
    ],
)
def test_what_cannot_be_used_is_named(server: Running, body: dict[str, Any], param: str | None, part: str) -> None:
    response = server.http.post(CHAT, json={"messages": TEXT, **body})
    assert check(response, 400, part, param=param)["type"] == "invalid_request_error"


def test_what_changes_no_answer_is_ignored(server: Running) -> None:
    usual = server.chat().json()["choices"][0]["message"]["content"]
    assert server.chat(**IGNORED).json()["choices"][0]["message"]["content"] == usual
    assert server.chat(temperature=0, top_p=0.5, top_k=3, seed=1).json()["choices"][0]["message"]["content"] == usual
    none = dict.fromkeys(("temperature", "top_p", "n", "stop", "stream", "tools", "audio", "foveate", "seed", "logit_bias"))
    assert server.chat(**none).json()["choices"][0]["message"]["content"] == usual


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"messages": "\\ud800"}', b'{"store":' + b"[" * 90_000]
)
def test_what_is_no_json(server: Running, content: bytes) -> None:
    response = server.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert check(response, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png;base64,!!!",
        "data:image/png;base64,AAAA",
        "data:text/plain,hello",
        IMAGE[:-4000],
    ],
)
def test_images_that_cannot_be_read(server: Running, address: str) -> None:
    for part in ({"type": "image_url", "image_url": address}, {"type": "video_url", "video_url": address}):
        check(server.chat(messages=[{"role": "user", "content": [part]}]), 400)
    assert server.chat().status_code == 200


def test_one_image_too_many(serve: Serve) -> None:
    with serve(max_images=2) as server:
        part = {"type": "image_url", "image_url": IMAGE}
        refused = server.chat(messages=[{"role": "user", "content": [part] * 3}])
        assert check(refused, 400, "3 images, videos and frames, the limit is 2", param="messages")["code"] == "too_many_images"
        frames = {"type": "video", "video": [IMAGE] * 3}
        check(server.chat(messages=[{"role": "user", "content": [frames]}]), 400, "the limit is 2", param="messages")


def test_paths_and_methods(server: Running) -> None:
    check(server.http.get("/v1/surprise"), 404, "there is nothing at this path")
    assert server.http.get(CHAT).headers["allow"] == "POST"
    check(server.http.get(CHAT), 405, "this path is not for GET")
    check(server.http.post(CHAT, content=b"{}"), 415, "content-type: application/json")
    check(server.chat(model="other"), 404, "there is no model of this name", param="model")


def test_several_models_have_to_be_named(serve: Serve) -> None:
    with serve(names=("tiny", "org/other")) as server:
        check(server.chat(), 400, "there are several models: tiny, org/other", param="model")
        assert server.chat(model="org/other").json()["model"] == "org/other"
        assert server.http.get("/v1/models/org/other").json()["id"] == "org/other"
        schema = server.http.get("/openapi.json").json()["components"]["schemas"]["ChatBody"]
        assert schema["properties"]["model"]["enum"] == ["tiny", "org/other"]
        assert "model" in schema["required"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(serve: Serve, chunked: bool) -> None:
    with serve(max_body_bytes=10_000) as server:
        content: Any = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]}).encode()
        sent = iter([content[:15_000], content[15_000:]]) if chunked else content
        response = server.http.post(CHAT, content=sent, headers={"content-type": "application/json"})
        check(response, 413, "more than 10000 bytes")


@pytest.mark.parametrize("begin", ['"metadata": [', '"logit_bias": {"1": 0, "2": ['])
def test_a_body_of_too_many_values(server: Running, begin: str) -> None:
    """Nobody else is heard while they are decoded."""
    content = '{"messages": [{"role": "user", "content": "x"}], ' + begin + "[]," * 120_000
    response = server.http.post(CHAT, content=content.encode(), headers={"content-type": "application/json"})
    check(response, 413, "commas and opening brackets, the limit is 100000")


def test_a_body_that_never_ends(serve: Serve) -> None:
    with serve(body_seconds=0.2) as server:

        def slowly() -> Any:
            yield b'{"messages":'
            wait_until(lambda: b'status="408"' in server.state.metrics.text())

        response = server.http.post(CHAT, content=slowly(), headers={"content-type": "application/json"})
        check(response, 408, "did not come within 0.2 s")


def test_keys(serve: Serve) -> None:
    with serve(api_keys=("first", "second")) as server:
        for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}, {"authorization": "first"}):
            for path in ("/v1/models", "/metrics"):
                assert check(server.http.get(path, headers=headers), 401, "API key")["code"] == "invalid_api_key"
        for path in ("/health", "/ready", "/version", "/openapi.json"):
            assert server.http.get(path).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.openai().models.list()
        assert server.openai(api_key="second").models.list().data
        assert server.http.get("/openapi.json").json()["components"]["securitySchemes"]


def test_too_many_wait(serve: Serve) -> None:
    with serve(EngineOptions(slots=1, tokens_per_slot=1024, max_waiting=0)) as server:
        check(server.chat(), 429, "requests wait already")
        with pytest.raises(openai.RateLimitError):
            server.openai().chat.completions.create(model="tiny", messages=TEXT)  # type: ignore[arg-type]


def test_a_deadline(server: Running) -> None:
    error = check(server.chat(messages=ASK, foveate={"deadline_ms": 0.01}), 504, "deadline", param="foveate.deadline_ms")
    assert error["type"] == "server_error"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackendError("graph 'vision' in /srv/secret failed. Export it again."), 500),
        (ZeroDivisionError("/srv/secret"), 500),
        (MachineError("there is not enough memory. Send less."), 503),
    ],
)
def test_faults_say_nothing_of_the_machine(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    """A graph that fails can't be had otherwise than by making it fail."""

    def failing(*arguments: object, **options: object) -> object:
        raise error

    monkeypatch.setattr(server.engine, "submit", failing)
    response = server.chat()
    check(response, status)
    assert response.headers["x-request-id"] in caplog.text
    assert str(error) in caplog.text


def test_a_stream_that_fails_says_so_and_ends(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in the middle of a stream is its last event; the official client raises it."""

    async def failing(*arguments: object) -> Any:
        raise BackendError("/srv/secret")

    monkeypatch.setattr("foveate.serve.generating._reports", failing)
    lines = server.chat(stream=True).text.split("\n\n")
    last = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert (last["code"], "secret" in last["message"]) == ("internal", False)
    with pytest.raises(openai.APIError, match="the server failed at this request"):
        list(server.openai().chat.completions.create(model="tiny", messages=TEXT, stream=True))  # type: ignore[arg-type]


def test_errors_before_the_first_token_are_answers_of_their_own(server: Running) -> None:
    check(server.chat(stream=True, max_tokens=1_000_000), 400, param="max_tokens")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [*ChatBody.__struct_fields__, "prompt", "input", "text", "tokens", "surprise"]
PATHS = [CHAT, "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), path=st.sampled_from(PATHS))
def test_no_body_is_a_fault(server: Running, body: dict[str, Any], path: str) -> None:
    response = server.http.post(path, json=body)
    assert response.status_code < 500, response.text


def test_errors_hide_where_files_are(serve: Serve, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["deep" * 20] * 4, "x.png")
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"no picture")
    with serve(allow_folders=(tmp_path,)) as server:
        (tmp_path / "link.png").symlink_to(deep)
        part = {"type": "image_url", "image_url": f"file://{tmp_path}/link.png"}
        response = server.chat(messages=[{"role": "user", "content": [part]}])
        check(response, 400, "can't be read as an image")
        assert "deep" not in response.text

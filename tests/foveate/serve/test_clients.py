"""What clients of OpenAI's API send and read: the official package, curl, and plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import subprocess
from typing import Any

import openai
import pytest
from PIL import Image

from foveate.runtime import Pipeline, Request
from tests.foveate.serve.conftest import ASK, CHAT, IMAGE, PICTURE, QUESTION, TEXT, Running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


def alone(pipe: Pipeline, keep: float | None = None) -> str:
    return pipe.generate(Request.ask(QUESTION, [PICTURE], keep=keep, max_new_tokens=8)).text


def test_a_picture_is_answered_as_alone(client: openai.OpenAI, pipe: Pipeline) -> None:
    for keep in (None, 0.25):
        own = {"foveate": {"keep": keep}}
        done = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, extra_body=own)  # type: ignore[call-overload]
        assert done.choices[0].message.content == alone(pipe, keep)
        assert done.choices[0].finish_reason == "stop"
        details = done.usage.prompt_tokens_details
        assert details.visual_tokens_kept == done.foveate["kept_tokens"] == round(details.visual_tokens * (keep or 1) + 1e-9)
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


@pytest.mark.parametrize("form", [{"url": IMAGE}, {"url": IMAGE, "detail": "high"}, IMAGE])
def test_an_image_is_an_object_or_an_address(server: Running, pipe: Pipeline, form: Any) -> None:
    parts = [{"type": "image_url", "image_url": form}, {"type": "text", "text": QUESTION}]
    done = server.chat(messages=[{"role": "user", "content": parts}], max_tokens=8).json()
    assert done["choices"][0]["message"]["content"] == alone(pipe)


def frames(count: int, kind: str) -> list[bytes]:
    pictures = [Image.new("RGB", (112, 112), (60 * index, 20, 200 - 40 * index)) for index in range(count)]
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file, kind)
    return [file.getvalue() for file in files]


def test_a_video_as_a_file_and_as_frames(server: Running) -> None:
    pictures = [Image.open(io.BytesIO(content)) for content in frames(4, "PNG")]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=1000)
    clip = "data:video/gif;base64," + base64.b64encode(file.getvalue()).decode()
    stills = ["data:image/png;base64," + base64.b64encode(content).decode() for content in frames(4, "PNG")]
    forms = [
        {"type": "video_url", "video_url": {"url": clip}},
        {"type": "video_url", "video_url": clip},
        {"type": "video", "video": clip},
        {"type": "video", "video": stills},
    ]
    for form in forms:
        content = [form, {"type": "text", "text": "What is this?"}]
        done = server.chat(messages=[{"role": "user", "content": content}])
        assert done.status_code == 200, done.text
        assert done.json()["foveate"]["visual_tokens"] > 16
        fewer = server.chat(messages=[{"role": "user", "content": content}], foveate={"max_frames": 2})
        told = fewer.json()
        assert fewer.status_code == 400 or told["foveate"]["visual_tokens"] < done.json()["foveate"]["visual_tokens"]


def test_a_stream_is_the_answer(client: openai.OpenAI, pipe: Pipeline) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )  # type: ignore[call-overload]
    events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == alone(pipe)
    *before, last, usage = events
    assert last.choices[0].finish_reason == "stop"
    assert last.foveate["timings"]["ttft_ms"] > 0
    assert usage.choices == []
    assert usage.usage.completion_tokens == 2
    assert all(event.usage is None for event in [*before, last])


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
def test_a_stream_has_no_usage_unless_asked(server: Running, options: Any) -> None:
    lines = server.chat(stream=True, stream_options=options).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(line.removeprefix("data: ")) for line in lines[:-2])


def test_an_asynchronous_client(server: Running, pipe: Pipeline) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            calls = [client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8) for _ in range(6)]  # type: ignore[call-overload]
            whole = [done.choices[0].message.content for done in await asyncio.gather(*calls)]
            stream = await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, stream=True)  # type: ignore[call-overload]
            return [*whole, "".join([event.choices[0].delta.content or "" async for event in stream])]

    assert asyncio.run(ask()) == [alone(pipe)] * 7


def test_several_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": TEXT, "max_tokens": 6, "temperature": 1.5, "seed": -5}
    several = client.chat.completions.create(**ask, n=3)  # type: ignore[call-overload]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in several.choices]
    again = client.chat.completions.create(**ask, n=3)  # type: ignore[call-overload]
    assert [choice.message.content for choice in again.choices] == texts
    one = client.chat.completions.create(**{**ask, "seed": -4})  # type: ignore[call-overload]
    assert one.choices[0].message.content == texts[1]
    assert several.usage.completion_tokens > one.usage.completion_tokens
    streamed = dict.fromkeys(range(3), "")
    for event in client.chat.completions.create(**ask, n=3, stream=True):  # type: ignore[call-overload]
        streamed[event.choices[0].index] += event.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_logprobs(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    rows = client.chat.completions.create(**ask).choices[0].logprobs.content  # type: ignore[call-overload]
    assert all(len(row.top_logprobs) == 3 for row in rows)
    assert rows[0].top_logprobs[0].token == rows[0].token
    assert rows[0].top_logprobs[0].logprob == rows[0].logprob <= 0
    assert all(bytes(row.bytes).decode() == row.token for row in rows)
    streamed = [row for event in client.chat.completions.create(**ask, stream=True) for row in logprobs_of(event)]  # type: ignore[call-overload]
    assert [row.token for row in streamed] == [row.token for row in rows]


def logprobs_of(event: Any) -> list[Any]:
    found = event.choices[0].logprobs
    return found.content if found else []


def test_what_changes_the_answer_changes_it(server: Running) -> None:
    def text(**body: Any) -> str:
        found: str = server.chat(messages=ASK, **body).json()["choices"][0]["message"]["content"]
        return found

    usual = text()
    first = server.chat(messages=ASK, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["token"]
    (token, *_) = server.http.post("/tokenize", json={"prompt": first, "add_special_tokens": False}).json()["tokens"]
    assert text(logit_bias={str(token): -100}) != usual
    assert text(stop=[usual[-1]]) == usual[:-1]
    assert text(stop=usual[0]) == ""
    assert len(text(ignore_eos=True, presence_penalty=2, frequency_penalty=2, max_tokens=12)) > len(usual)
    assert server.chat(messages=ASK, max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


def test_json_by_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "many": {"type": "boolean"}},
        "required": ["colour", "many"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema, "strict": True}}
    done = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=500, response_format=form)  # type: ignore[call-overload]
    answer = json.loads(done.choices[0].message.content)
    assert answer["colour"] in ("red", "blue")
    assert set(answer) == {"colour", "many"}
    text = {"format": {"type": "json_schema", "name": "seen", "schema": schema}}
    response = client.responses.create(model="tiny", input="Hello", text=text, max_output_tokens=500)  # type: ignore[call-overload]
    assert set(json.loads(response.output_text)) == {"colour", "many"}


def test_completions_go_on_with_a_text(client: openai.OpenAI, pipe: Pipeline) -> None:
    done = client.completions.create(model="tiny", prompt="the circle is", max_tokens=4, logprobs=2)
    raw = Request([{"role": "user", "content": "the circle is"}], raw=True, max_new_tokens=4)
    assert done.choices[0].text == pipe.generate(raw).text
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(pipe.prepare(raw).layout.input_ids)
    rows = done.choices[0].logprobs
    assert rows is not None
    assert len(rows.tokens or []) == len(rows.top_logprobs or []) == done.usage.completion_tokens
    stream = client.completions.create(model="tiny", prompt=["the circle is"], max_tokens=4, stream=True)
    assert "".join(event.choices[0].text for event in stream) == done.choices[0].text


def test_responses_without_state(client: openai.OpenAI, pipe: Pipeline) -> None:
    parts = [{"type": "input_image", "image_url": IMAGE, "detail": "auto"}, {"type": "input_text", "text": QUESTION}]
    ask = {"model": "tiny", "input": [{"role": "user", "content": parts}], "max_output_tokens": 8}
    done = client.responses.create(**ask)  # type: ignore[call-overload]
    assert done.output_text == alone(pipe)
    assert done.status == "completed"
    events = list(client.responses.create(**ask, stream=True))  # type: ignore[call-overload]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == done.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.input_tokens == done.usage.input_tokens
    cut = client.responses.create(model="tiny", input="Hello", instructions="Be brief", max_output_tokens=1)
    assert (cut.status, cut.incomplete_details and cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_explain(server: Running) -> None:
    told = server.chat(messages=ASK, foveate={"keep": 0.25, "explain": True}).json()["foveate"]
    assert len(told["explain"]["kept"]) == told["kept_tokens"]
    assert len(told["explain"]["scores"]) == told["visual_tokens"]
    head, _, content = told["explain"]["image"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).width > 100
    assert server.chat(foveate={"explain": True}).json()["foveate"]["explain"]["image"] is None
    events = server.chat(messages=ASK, foveate={"keep": 0.25, "explain": True}, stream=True).text.split("\n\n")
    (last,) = [found for event in events[:-2] if (found := json.loads(event.removeprefix("data: ")).get("foveate"))]
    assert last["explain"]["kept"] == told["explain"]["kept"]


def test_tokens_and_back(server: Running) -> None:
    tokens = server.http.post("/tokenize", json={"prompt": "What colour is it?"}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert server.http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "What colour is it?"}
    chat = server.http.post("/tokenize", json={"messages": ASK}).json()
    assert chat["count"] == server.chat(messages=ASK).json()["usage"]["prompt_tokens"]


def test_models(client: openai.OpenAI) -> None:
    (only,) = client.models.list().data
    assert (only.id, only.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == only
    with pytest.raises(openai.NotFoundError, match="there is no model of this name, there is tiny"):
        client.models.retrieve("other")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Running, pipe: Pipeline) -> None:
    body = json.dumps({"messages": ASK, "max_tokens": 8, "stream": True})
    words = ["curl", "-sN", f"{server.url}{CHAT}", "-H", "Content-Type: application/json", "-d", "@-"]
    lines = subprocess.run(words, input=body, capture_output=True, text=True, check=True).stdout.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == alone(pipe)

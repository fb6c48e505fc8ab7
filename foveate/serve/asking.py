"""From a body to requests of the runtime: one for each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from foveate.runtime import Budget, Request, Sampling
from foveate.runtime.grammar import Grammar
from foveate.serve.errors import HttpError
from foveate.serve.options import Served, ServeOptions
from foveate.serve.room import Holding
from foveate.serve.schema import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    Drawing,
    FramesPart,
    ImagePart,
    InputImage,
    InputMessage,
    InputVideo,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    Own,
    Part,
    ResponseFormat,
    ResponseJsonSchema,
    ResponsesBody,
    TextFormat,
    TextPart,
    VideoPart,
)
from foveate.serve.sources import Sources

_NO_OWN = Own()
_SHRINKS = 4
"""How many characters a tokenizer may make one of, before it looks for tokens."""


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
        requests: one for each answer.
        priority: of them.
        deadline_ms: of them.
        flexible: whether their budgets may shrink under load.
        explain: whether to answer with a picture.
    """

    requests: tuple[Request, ...]
    priority: int
    deadline_ms: float | None
    flexible: bool
    explain: bool


async def ask_chat(body: ChatBody, served: Served, sources: Sources, options: ServeOptions, holding: Holding) -> Asked:
    """What `/v1/chat/completions` is asked.

    Raises:
        RequestError: something can't be used.
        HttpError: something contradicts something else.
    """
    _check_pair(body.max_completion_tokens, body.max_tokens, "max_tokens", "max_completion_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise HttpError(
            400, "top_logprobs does nothing without logprobs. Set logprobs to true.", "top_logprobs", "invalid_value"
        )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    grammar = await find_grammar(body.response_format, served)
    messages = await read_messages(body.messages, served, sources, options, holding)
    longest = body.max_completion_tokens or body.max_tokens
    return _asked(body, served, messages, longest, logprobs, grammar)


def ask_completion(body: CompletionBody, served: Served) -> Asked:
    """What `/v1/completions` is asked; raises what `ask_chat` does."""
    prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    check_length(len(prompt), served)
    return _asked(body, served, [{"role": "user", "content": prompt}], body.max_tokens, body.logprobs, None, raw=True)


def as_chat(body: ResponsesBody) -> ChatBody:
    """The same as a chat."""
    given = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [ChatMessage(role=message.role, content=_content(message)) for message in given]
    if body.instructions:
        messages.insert(0, ChatMessage(role="system", content=body.instructions))
    given_form = body.text.format if body.text else None
    form: ResponseFormat | None
    if isinstance(given_form, ResponseJsonSchema):
        form = JsonSchemaFormat(json_schema=JsonSchema(name=given_form.name, schema=given_form.schema))
    else:
        form = given_form
    return ChatBody(
        messages=messages,
        model=body.model,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=form,
        stream=body.stream,
        foveate=body.foveate,
    )


async def read_messages(
    messages: Sequence[ChatMessage], served: Served, sources: Sources, options: ServeOptions, holding: Holding
) -> list[dict[str, Any]]:
    """Messages as the runtime takes them, their images and videos fetched.

    Raises:
        RequestError: an address can't be used.
        HttpError: there are more images than allowed, or more text than could ever fit.
    """
    check_length(sum(map(_characters, messages)), served)
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
    wanted = [address for part in parts for address in _addresses(part)]
    if len(wanted) > options.max_images:
        fact = f"the messages have {len(wanted)} images, videos and frames, the limit is {options.max_images}. Send fewer."
        raise HttpError(400, fact, "messages", "too_many_images")
    fetched = iter(await _fetch(wanted, sources, holding))
    return [_message(message, fetched) for message in messages]


def check_length(characters: int, served: Served) -> None:
    """Refuses at sight what no tokenizer could make few enough tokens of: to read it all would take long.

    Raises:
        HttpError: that is so.
    """
    most = served.slot_tokens * served.texts.longest * _SHRINKS
    if characters > most:
        fact = f"the text has {characters} characters, more than {served.slot_tokens} tokens can hold. Shorten it."
        raise HttpError(400, fact, code="context_length_exceeded")


def _characters(message: ChatMessage) -> int:
    if isinstance(message.content, str):
        return len(message.content)
    return sum(len(part.text) for part in message.content if isinstance(part, TextPart))


async def _fetch(wanted: Sequence[tuple[str, Literal["image", "video"]]], sources: Sources, holding: Holding) -> list[bytes]:
    """All of them, side by side; the first that fails ends the others."""
    if not wanted:
        return []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(sources.resolve(address, kind, holding)) for address, kind in wanted]
    except ExceptionGroup as error:
        raise error.exceptions[0] from error
    return [task.result() for task in tasks]


def _message(message: ChatMessage, fetched: Any) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    content = message.content if isinstance(message.content, str) else [_part(part, fetched) for part in message.content]
    return {"role": role, "content": content}


def _part(part: Part, fetched: Any) -> dict[str, Any]:
    """A part as the runtime takes it; its sources are the next that were fetched."""
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image", "image": next(fetched)}
    if isinstance(part, FramesPart) and not isinstance(part.video, str):
        return {"type": "video", "video": [next(fetched) for _ in part.video]}
    return {"type": "video", "video": next(fetched)}


def _addresses(part: Part) -> list[tuple[str, Literal["image", "video"]]]:
    if isinstance(part, ImagePart):
        return [(part.image_url if isinstance(part.image_url, str) else part.image_url.url, "image")]
    if isinstance(part, VideoPart):
        return [(part.video_url if isinstance(part.video_url, str) else part.video_url.url, "video")]
    if isinstance(part, FramesPart):
        return [(part.video, "video")] if isinstance(part.video, str) else [(frame, "image") for frame in part.video]
    return []


def _content(message: InputMessage) -> str | list[Part]:
    if isinstance(message.content, str):
        return message.content
    found: list[Part] = []
    for part in message.content:
        if isinstance(part, InputImage):
            found.append(ImagePart(image_url=part.image_url))
        elif isinstance(part, InputVideo):
            found.append(VideoPart(video_url=part.video_url))
        else:
            found.append(TextPart(text=part.text))
    return found


async def find_grammar(form: ResponseFormat | None, served: Served) -> Grammar | None:
    """What the answer is held to; compiled off the event loop.

    Raises:
        RequestError: a schema that can't be followed.
    """
    if form is None or isinstance(form, TextFormat):
        return None

    def compiled() -> Grammar:
        if isinstance(form, JsonObjectFormat):
            return served.grammars.json_object()
        assert isinstance(form, JsonSchemaFormat)
        return served.grammars.json_schema(form.json_schema.schema)

    return await asyncio.to_thread(compiled)


def _asked(
    body: Drawing,
    served: Served,
    messages: list[dict[str, Any]],
    longest: int | None,
    logprobs: int | None,
    grammar: Grammar | None,
    raw: bool = False,
) -> Asked:
    if body.stream_options is not None and not body.stream:
        raise HttpError(
            400, "stream_options does nothing without stream. Set stream to true.", "stream_options", "invalid_value"
        )
    own = body.foveate or _NO_OWN
    _check_pixels(own, served)
    request = Request(
        messages,
        budget=_budget(own),
        sampling=sampling_of(body),
        select=own.select,
        min_retained=own.min_retained,
        explain=bool(own.explain),
        max_new_tokens=longest,
        stop=_stops(body),
        fps=own.fps,
        max_frames=own.max_frames,
        ignore_eos=bool(body.ignore_eos),
        frame_rule=own.frame_rule,
        max_visual_tokens=own.max_visual_tokens,
        min_pixels=own.min_pixels,
        max_pixels=own.max_pixels,
        encode=own.encode,
        redundancy=own.redundancy,
        logprobs=logprobs,
        grammar=grammar,
        raw=raw,
    )
    requests = [request] + [_with_seed(request, index) for index in range(1, body.n or 1)]
    return Asked(tuple(requests), own.priority or 0, own.deadline_ms, own.keep == "auto", bool(own.explain))


def _check_pixels(own: Own, served: Served) -> None:
    """A client makes pictures smaller than the model does, not larger: what seeing takes grows with the square of them."""
    most = served.pipe.most_pixels
    if own.max_pixels is not None and most is not None and own.max_pixels > most:
        fact = f"foveate.max_pixels is {own.max_pixels}, the limit is the model's own, {most}. Lower it, or leave it out."
        raise HttpError(400, fact, "foveate.max_pixels", "invalid_value")


def _budget(own: Own) -> Budget:
    others = [name for name in ("keep_tokens", "mass", "ttft_ms") if getattr(own, name) is not None]
    if own.keep == "auto" and (others or own.only_if_faster):
        name = f"foveate.{(others or ['only_if_faster'])[0]}"
        raise HttpError(
            400, f"{name} stands beside foveate.keep 'auto', which chooses. Drop one of them.", name, "invalid_value"
        )
    ratio = None if own.keep == "auto" else own.keep
    return Budget(ratio, own.keep_tokens, own.mass, own.ttft_ms, bool(own.only_if_faster))


def sampling_of(body: Drawing) -> Sampling:
    """How tokens are drawn. What only matters above temperature 0 is no error at a temperature of 0 that was given."""
    greedy = body.temperature == 0
    top_k = body.top_k if body.top_k is not None and body.top_k > 0 else None
    return Sampling(
        temperature=body.temperature or 0.0,
        top_k=None if greedy else top_k,
        top_p=1.0 if greedy or body.top_p is None else body.top_p,
        seed=None if body.seed is None else body.seed % 2**64,
        repetition_penalty=body.repetition_penalty,
        min_new_tokens=body.min_tokens,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
    )


def _with_seed(request: Request, index: int) -> Request:
    """The request for another answer: the same seed would draw the same tokens."""
    seed = request.sampling.seed
    return request if seed is None else replace(request, sampling=replace(request.sampling, seed=seed + index))


def _stops(body: Drawing) -> tuple[str, ...] | None:
    if body.stop is None:
        return None
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)


def _check_pair(value: object, other: object, param: str, name: str) -> None:
    if value is not None and other is not None and value != other:
        raise HttpError(
            400, f"{param} is {other} and {name} is {value}, expected one of them. Drop one.", param, "invalid_value"
        )

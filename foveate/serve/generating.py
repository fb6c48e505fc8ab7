"""The endpoints that generate text: each a body in, an answer or a stream of events out."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from importlib.metadata import version

import msgspec

from foveate.runtime import Answer, Chunk
from foveate.runtime.scheduler import Ticket
from foveate.runtime.types import TokenLogprob
from foveate.serve.asking import Asked, as_chat, ask_chat, ask_completion
from foveate.serve.calls import DONE, Call, event
from foveate.serve.options import Served
from foveate.serve.replies import (
    FINISHES,
    Alternative,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    Incomplete,
    Logprobs,
    LogprobToken,
    OutputMessage,
    Report,
    Response,
    TextContent,
    report_of,
    response_usage,
    usage_of,
)
from foveate.serve.schema import ChatBody, CompletionBody, Drawing, ResponsesBody
from foveate.serve.tokens import TokenTexts

FINGERPRINT = f"foveate-{version('foveate')}"


async def chat(call: Call) -> None:
    """`POST /v1/chat/completions`"""
    body = call.decode(ChatBody)
    served = call.find_free(body.model)
    asked = await ask_chat(body, served, call.state.sources, call.state.options, call.holding)
    body = msgspec.structs.replace(body, messages=[])  # they are read, and may be large
    with call.submitted(asked, served) as tickets:
        if body.stream:
            await call.stream(_chat_events(call, body, served, asked, tickets))
            return
        answers = [await ticket for ticket in tickets]
        reports = await _reports(answers, asked)
        call.note(served, tickets, answers)
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=answer.text),
                finish_reason=FINISHES[answer.finish_reason],
                logprobs=_logprobs(served.texts, answer.logprobs) if body.logprobs else None,
                foveate=report,
            )
            for index, (answer, report) in enumerate(zip(answers, reports, strict=True))
        ]
        await call.reply(
            ChatCompletion(
                id=_id("chatcmpl"),
                created=int(time.time()),
                model=served.name,
                choices=choices,
                usage=usage_of(answers),
                foveate=reports[0],
                system_fingerprint=FINGERPRINT,
            )
        )


async def _chat_events(
    call: Call, body: ChatBody, served: Served, asked: Asked, tickets: Sequence[Ticket]
) -> AsyncIterator[bytes]:
    chunk_of = partial(
        ChatChunk, id=_id("chatcmpl"), created=int(time.time()), model=served.name, system_fingerprint=FINGERPRINT
    )
    counted = _wants_usage(body)
    made = partial(chunk_of, usage=None) if counted else chunk_of
    begun, answers = set[int](), dict[int, Answer]()
    async for index, chunk in _chunks(tickets):
        if isinstance(chunk, Answer):
            answers[index] = chunk
            (report,) = await _reports([chunk], asked)
            choice = ChunkChoice(index=index, delta=Delta(), finish_reason=FINISHES[chunk.finish_reason])
            yield event(made(choices=[choice], foveate=report))
            continue
        if index not in begun:
            begun.add(index)
            yield event(made(choices=[ChunkChoice(index=index, delta=Delta(role="assistant", content=""))]))
        rows = None if chunk.logprob is None else Logprobs(content=[_row(served.texts, chunk.token_id, chunk)])
        if chunk.text or rows is not None:
            yield event(made(choices=[ChunkChoice(index=index, delta=Delta(content=chunk.text), logprobs=rows)]))
    ordered = [answers[index] for index in sorted(answers)]
    call.note(served, tickets, ordered)
    if counted:
        yield event(chunk_of(choices=[], usage=usage_of(ordered)))
    yield DONE


async def completion(call: Call) -> None:
    """`POST /v1/completions`"""
    body = call.decode(CompletionBody)
    served = call.find_free(body.model)
    asked = ask_completion(body, served)
    with call.submitted(asked, served) as tickets:
        if body.stream:
            await call.stream(_completion_events(call, body, served, asked, tickets))
            return
        answers = [await ticket for ticket in tickets]
        reports = await _reports(answers, asked)
        call.note(served, tickets, answers)
        choices = [
            CompletionChoice(
                index=index,
                text=answer.text,
                finish_reason=FINISHES[answer.finish_reason],
                logprobs=_completion_logprobs(served.texts, answer.logprobs) if body.logprobs is not None else None,
            )
            for index, answer in enumerate(answers)
        ]
        made = _completion_of(served)
        await call.reply(made(choices=choices, usage=usage_of(answers), foveate=reports[0]))


async def _completion_events(
    call: Call, body: CompletionBody, served: Served, asked: Asked, tickets: Sequence[Ticket]
) -> AsyncIterator[bytes]:
    chunk_of = _completion_of(served)
    counted = _wants_usage(body)
    made = partial(chunk_of, usage=None) if counted else chunk_of
    answers, offsets = dict[int, Answer](), dict[int, int]()
    async for index, chunk in _chunks(tickets):
        if isinstance(chunk, Answer):
            answers[index] = chunk
            (report,) = await _reports([chunk], asked)
            choice = CompletionChoice(index=index, text="", finish_reason=FINISHES[chunk.finish_reason])
            yield event(made(choices=[choice], foveate=report))
            continue
        rows = None
        if chunk.logprob is not None:
            row = TokenLogprob(chunk.token_id, chunk.logprob, chunk.top_logprobs)
            rows = _completion_logprobs(served.texts, [row], offsets.get(index, 0))
            offsets[index] = offsets.get(index, 0) + len(rows.tokens[0])
        if chunk.text or rows is not None:
            yield event(made(choices=[CompletionChoice(index=index, text=chunk.text, logprobs=rows)]))
    ordered = [answers[index] for index in sorted(answers)]
    call.note(served, tickets, ordered)
    if counted:
        yield event(chunk_of(choices=[], usage=usage_of(ordered)))
    yield DONE


async def respond(call: Call) -> None:
    """`POST /v1/responses`"""
    body = call.decode(ResponsesBody)
    served = call.find_free(body.model)
    asked = await ask_chat(as_chat(body), served, call.state.sources, call.state.options, call.holding)
    body = msgspec.structs.replace(body, input=[])  # it is read, and may be large
    with call.submitted(asked, served) as (ticket,):
        if body.stream:
            await call.stream(_response_events(call, body, served, asked, ticket))
            return
        answer = await ticket
        (report,) = await _reports([answer], asked)
        call.note(served, [ticket], [answer])
        await call.reply(_finished(_response_of(body, served), _id("msg"), answer, report))


async def _response_events(
    call: Call, body: ResponsesBody, served: Served, asked: Asked, ticket: Ticket
) -> AsyncIterator[bytes]:
    response, item = _response_of(body, served), _id("msg")
    number = -1

    def told(kind: str, **facts: object) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number, **facts}, kind)

    place = {"item_id": item, "output_index": 0, "content_index": 0}
    chunks = _chunks([ticket])
    _, chunk = await anext(chunks)  # what fails before is an answer of its own
    yield told("response.created", response=response)
    yield told("response.in_progress", response=response)
    yield told("response.output_item.added", output_index=0, item=OutputMessage(id=item, content=[], status="in_progress"))
    yield told("response.content_part.added", **place, part=TextContent(text=""))
    while not isinstance(chunk, Answer):
        if chunk.text:
            yield told("response.output_text.delta", **place, delta=chunk.text, logprobs=[])
        _, chunk = await anext(chunks)
    answer = chunk
    (report,) = await _reports([answer], asked)
    call.note(served, [ticket], [answer])
    done = _finished(response, item, answer, report)
    yield told("response.output_text.done", **place, text=answer.text, logprobs=[])
    yield told("response.content_part.done", **place, part=TextContent(text=answer.text))
    yield told("response.output_item.done", output_index=0, item=done.output[0])
    yield told(f"response.{done.status}", response=done)


def _response_of(body: ResponsesBody, served: Served) -> Response:
    return Response(
        id=_id("resp"),
        created_at=int(time.time()),
        model=served.name,
        output=[],
        status="in_progress",
        instructions=body.instructions,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
    )


def _finished(response: Response, item: str, answer: Answer, report: Report) -> Response:
    cut = answer.finish_reason == "length"
    message = OutputMessage(id=item, content=[TextContent(text=answer.text)], status="incomplete" if cut else "completed")
    return msgspec.structs.replace(
        response,
        output=[message],
        status=message.status,
        usage=response_usage(answer),
        foveate=report,
        incomplete_details=Incomplete() if cut else None,
    )


async def _chunks(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Chunk | Answer]]:
    """The chunks of all tickets as they come, and behind them the answer of each, with the ticket's index; raises what the
    first one fails with."""
    if len(tickets) == 1:
        async for chunk in tickets[0]:
            yield 0, chunk
        yield 0, await tickets[0]
        return
    queue: asyncio.Queue[tuple[int, Chunk | Answer | Exception]] = asyncio.Queue()

    async def pump(index: int, ticket: Ticket) -> None:
        try:
            async for chunk in ticket:
                queue.put_nowait((index, chunk))
            queue.put_nowait((index, await ticket))
        except Exception as error:
            queue.put_nowait((index, error))

    pumps = [asyncio.create_task(pump(index, ticket)) for index, ticket in enumerate(tickets)]
    try:
        going = len(tickets)
        while going:
            index, news = await queue.get()
            if isinstance(news, Exception):
                raise news
            going -= isinstance(news, Answer)
            yield index, news
    finally:
        for task in pumps:
            task.cancel()


async def _reports(answers: Sequence[Answer], asked: Asked) -> list[Report]:
    """How answers came about; pictures are drawn off the event loop."""
    if not asked.explain:
        return [report_of(answer, False) for answer in answers]
    return [await asyncio.to_thread(report_of, answer, True) for answer in answers]


def _wants_usage(body: Drawing) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _completion_of(served: Served) -> partial[Completion]:
    return partial(Completion, id=_id("cmpl"), created=int(time.time()), model=served.name, system_fingerprint=FINGERPRINT)


def _logprobs(texts: TokenTexts, rows: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs(content=[_row(texts, row.token_id, row) for row in rows])


def _row(texts: TokenTexts, token: int, likely: TokenLogprob | Chunk) -> LogprobToken:
    assert likely.logprob is not None
    first = _alternative(texts, token, likely.logprob)
    others = [_alternative(texts, other, logprob) for other, logprob in likely.top_logprobs]
    return LogprobToken(token=first.token, logprob=first.logprob, bytes=first.bytes, top_logprobs=others)


def _alternative(texts: TokenTexts, token: int, logprob: float) -> Alternative:
    text, raw = texts.text(token)
    return Alternative(token=text, logprob=logprob, bytes=None if raw is None else list(raw))


def _completion_logprobs(texts: TokenTexts, rows: Sequence[TokenLogprob], offset: int = 0) -> CompletionLogprobs:
    tokens = [texts.text(row.token_id)[0] for row in rows]
    offsets = [offset + sum(map(len, tokens[:index])) for index in range(len(tokens))]
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[row.logprob for row in rows],
        top_logprobs=[{texts.text(token)[0]: logprob for token, logprob in row.top_logprobs} for row in rows],
        text_offset=offsets,
    )


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"

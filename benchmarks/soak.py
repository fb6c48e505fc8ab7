"""A server under thousands of mixed requests: does it stay up, keep answers apart, and keep its memory?

    python -m benchmarks.soak BUNDLE --work out/soak

Good requests of every kind are answered alone first, by `Pipeline.generate`; the bundle has to be fp32, where an answer among
others is that alone. Then clients send them mixed with ones that are cancelled at any moment, malformed, oversized, late, or
point where they should not. Prints a line of JSON for each block of requests and one at the end. What was done stays in a
soak.jsonl of WORK: a run that was ended goes on at its next block, with a new server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import h11
import msgspec
import numpy as np

from benchmarks import hostile
from foveate.bench.client import Address, get
from foveate.bench.server import serve_bundle, tree_memory
from foveate.engines import SessionOptions, replace_file
from foveate.runtime import Answer, Pipeline, load
from foveate.runtime.scheduler import EngineOptions
from foveate.serve import Served, ServeOptions
from foveate.serve.asking import Asked, as_chat, ask_chat, ask_completion
from foveate.serve.room import Holding, Room
from foveate.serve.schema import ChatBody, CompletionBody, ResponsesBody
from foveate.serve.sources import Sources

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BLOCK = 200
"""Requests of a line of the file."""
WARM = 1_000
"""Requests of a server after which its memory is looked at."""
NEAR = 1e-3
"""Most difference of logprobs; another picture or neighbour makes far more."""
SLOT_TOKENS, BODY_BYTES = 1024, 1_000_000
ANSWER_S = 120.0
"""Most time for an answer, on a machine that has other work."""
WEIGHTS = {"good": 50, "gone": 24, "malformed": 10, "late": 6, "source": 6, "oversized": 4}


class Known(msgspec.Struct, frozen=True):
    """A good request, and its answer alone.

    Attributes:
        texts: of its choices.
        kept: visual tokens of each choice.
        logprobs: of each choice's tokens; empty where they are not asked for.
    """

    path: str
    body: dict[str, Any]
    texts: list[str]
    kept: list[int]
    logprobs: list[list[float]]


class Reply(msgspec.Struct, frozen=True):
    """An answer as it came."""

    status: int
    kind: str
    content: bytes


class Block(msgspec.Struct, frozen=True):
    """What came of some requests.

    Attributes:
        server: which server of the run it was, counted from 0.
        first: number of the first request.
        outcomes: how often each kind of request ended in which way.
        wrong: what should not be, in words.
        private_mib: RssAnon + VmSwap of the server at the end.
        seconds: they took.
    """

    server: int
    first: int
    requests: int
    outcomes: dict[str, int]
    wrong: list[str]
    private_mib: float
    seconds: float


class Summary(msgspec.Struct, frozen=True):
    """What came of all.

    Attributes:
        mib_per_1000: slope of the server's memory after `WARM` requests, and its standard error; None where too few are known.
    """

    requests: int
    servers: int
    outcomes: dict[str, int]
    wrong: list[str]
    mib_per_1000: tuple[float, float] | None
    private_mib: tuple[float, float]


# Good requests, and what they are answered alone.


def good_bodies(host: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with its path; `host` has the pictures that are fetched."""
    sizes = ((112, 84), (84, 112), (168, 112), (56, 56), (140, 140), (224, 168))
    seen = [hostile.picture(*size, seed=number) for number, size in enumerate(sizes)]
    addresses = [hostile.data(one) for one in seen]
    for number, address in enumerate(addresses):
        for own in (
            {},
            {"keep": 0.5},
            {"keep": 0.25, "select": "attention"},
            {"keep_tokens": 4},
            {"keep": "auto", "priority": 3},
        ):
            yield CHAT, {"messages": _asks("What colour is it?", [address]), **_told(5 + number), "foveate": own}
    for number, text in enumerate(("Hello", "What is a word?" * 9, "<|im_end|> {{ 7 }} é", "a b c " * 60)):
        yield CHAT, {"messages": _asks(text), **_told(30 - 6 * number)}
        yield CHAT, {"messages": _asks(text), **_told(12), "temperature": 1.0, "seed": number, "n": 1 + number, "top_p": 0.9}
        yield COMPLETION, {"prompt": text, "max_tokens": 9, "ignore_eos": True, "logprobs": 1}
        yield RESPONSE, {"input": text, "max_output_tokens": 11}
    frames = [{"type": "video", "video": addresses[:1] * 2 + addresses[:1]}, {"type": "text", "text": "What moves?"}]
    clip = {"type": "video_url", "video_url": {"url": hostile.data(hostile.clip(5, 84), "video/gif")}}
    for content in (frames, [clip, frames[1]], [clip, *_asks("And?", addresses[1:3])[0]["content"]]):
        for own in ({}, {"keep": 0.4}, {"redundancy": 0}):
            yield CHAT, {"messages": [{"role": "user", "content": content}], **_told(7), "foveate": own}
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}, "required": ["a", "n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for number, address in enumerate(addresses[:3]):
        yield CHAT, {"messages": _asks("What?", [address]), "max_tokens": 20, "response_format": form, "n": 1 + number % 2}
        yield CHAT, {"messages": _asks("What?"), "max_tokens": 8 + number, "response_format": {"type": "json_object"}}
        yield (
            CHAT,
            {
                "messages": _asks("Where?", addresses[number : number + 2]),
                "max_tokens": 9,
                "stop": ["e", "t"],
                "logprobs": True,
            },
        )
        yield CHAT, {"messages": _asks("Who?", [address]), **_told(14), "repetition_penalty": 1.3, "presence_penalty": 1.0}
        yield CHAT, {"messages": _asks("Where?", [address]), "max_tokens": 2, "foveate": {"keep": 0.5, "explain": True}}
    yield CHAT, {"messages": _asks("What?", [f"http://{host}/good.png"]), **_told(6)}


def _asks(text: str, addresses: Sequence[str] = ()) -> list[dict[str, Any]]:
    pictures = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]


def _told(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "ignore_eos": True, "logprobs": True}


def answer_alone(bundle: Path, host: str) -> list[Known]:
    """What each good request is answered where there is no other."""
    with load(bundle, options=SessionOptions(threads=1)) as pipe, pipe.engine(EngineOptions(1, SLOT_TOKENS)) as engine:
        served = Served("soak", pipe, engine, bundle)
        sources = Sources((host,))
        try:
            return [asyncio.run(_answer_alone(pipe, served, sources, path, body)) for path, body in good_bodies(host)]
        finally:
            sources.close()


async def _answer_alone(pipe: Pipeline, served: Served, sources: Sources, path: str, body: dict[str, Any]) -> Known:
    asked = await _asked(served, sources, path, body)
    answers: list[Answer] = [await asyncio.to_thread(pipe.generate, request) for request in asked.requests]
    return Known(
        path=path,
        body=body,
        texts=[answer.text for answer in answers],
        kept=[len(answer.selection.keep_indices) for answer in answers],
        logprobs=[[row.logprob for row in answer.logprobs] for answer in answers],
    )


async def _asked(served: Served, sources: Sources, path: str, body: dict[str, Any]) -> Asked:
    if path == COMPLETION:
        return ask_completion(msgspec.convert(body, CompletionBody), served)
    chat = msgspec.convert(body, ChatBody) if path == CHAT else as_chat(msgspec.convert(body, ResponsesBody))
    options = ServeOptions()
    with Holding(Room(options.max_held_bytes)) as holding:
        return await ask_chat(chat, served, sources, options, holding)


# What is sent.


@dataclass(frozen=True)
class Sending:
    """A request that is about to be sent.

    Attributes:
        kind: a name in `WEIGHTS`.
        known: whose answer it has to get; None where any refusal will do.
        leave_after: the share of its bytes after which the client goes; None where it sends them all.
        leave_s: how long it waits for the answer then; None for as long as it takes.
        abrupt: whether it goes without a word.
    """

    kind: str
    path: str
    headers: hostile.Headers
    content: bytes
    known: Known | None = None
    leave_after: float | None = None
    leave_s: float | None = None
    abrupt: bool = False


def sending(number: int, known: Sequence[Known], host: str) -> Sending:
    """The request of a number."""
    chance = Random(number)
    kind = chance.choices([*WEIGHTS], weights=[*WEIGHTS.values()])[0]
    if kind == "malformed":
        made = hostile.make(number)
        return Sending(kind, made.path, [pair for pair in made.headers if pair[0] != b"content-length"], made.content)
    if kind == "source":
        address = chance.choice(_bad_addresses(host))
        return _sent(kind, CHAT, {"messages": _asks("What?", [address]), "max_tokens": 2})
    if kind == "oversized":
        return _sent(kind, *chance.choice(_oversized()))
    one = chance.choice(known)
    streamed = one.path != RESPONSE and chance.random() < 0.5
    body = {**one.body, **({"stream": True} if streamed else {})}
    if kind == "late":
        body["foveate"] = {**one.body.get("foveate", {}), "deadline_ms": 10 ** chance.uniform(0, 3)}
    sent = _sent(kind, one.path, body, one)
    if kind != "gone":
        return sent
    abrupt, early = chance.random() < 0.5, chance.random() < 0.2
    after, wait = (chance.random(), None) if early else (None, 10 ** chance.uniform(-3.5, 0))
    return Sending(kind, one.path, sent.headers, sent.content, one, after, wait, abrupt)


def _sent(kind: str, path: str, body: dict[str, Any], known: Known | None = None) -> Sending:
    return Sending(kind, path, [(b"content-type", b"application/json")], msgspec.json.encode(body), known)


def _bad_addresses(host: str) -> list[str]:
    places = ("redirect", "missing", "cut", "html", "bomb")
    return [*(f"http://{host}/{place}" for place in places), *hostile.BAD_ADDRESSES]


def _oversized() -> list[tuple[str, dict[str, Any]]]:
    small = hostile.data(hostile.picture(28, 28))
    return [
        (CHAT, {"messages": _asks("x" * (BODY_BYTES + 1))}),
        (CHAT, {"messages": _asks("x" * (BODY_BYTES - 1_000))}),
        (CHAT, {"messages": _asks("What is a word? " * 400)}),
        (CHAT, {"messages": _asks("What?"), "max_tokens": 2**31 - 1}),
        (CHAT, {"messages": _asks("What?", [small] * 65)}),
        (CHAT, {"messages": _asks("What?", [hostile.data(hostile.png_of(60_000, 60_000))])}),
        (CHAT, {"messages": _asks("What?", [small]), "foveate": {"min_pixels": 2**31 - 1}}),
        (COMPLETION, {"prompt": "a b " * 3_000}),
        (RESPONSE, {"input": "a b " * 3_000}),
    ]


async def send(address: Address, one: Sending) -> Reply | None:
    """The answer; None where the client did not wait for it.

    Raises:
        OSError, h11.ProtocolError: the connection broke.
    """
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [(b"host", b"x"), (b"connection", b"close"), (b"content-length", b"%d" % len(one.content)), *one.headers]
        content = (connection.send(h11.Request(method="POST", target=one.path, headers=headers)) or b"") + one.content
        connection.send(h11.Data(data=one.content))
        connection.send(h11.EndOfMessage())
        if one.leave_after is not None:
            writer.write(content[: int(one.leave_after * len(content))])
            return None
        writer.write(content)
        try:
            async with asyncio.timeout(ANSWER_S if one.leave_s is None else one.leave_s):
                return await _read(connection, reader)
        except TimeoutError:
            if one.leave_s is None:
                raise
            return None
    finally:
        if one.abrupt:
            writer.transport.abort()
        writer.close()


async def _read(connection: h11.Connection, reader: asyncio.StreamReader) -> Reply:
    status, kind, content = 0, "", bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            # A server that refuses what it has not read may reset the connection behind its answer.
            connection.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Response):
            status, kind = event.status_code, dict(event.headers.raw_items()).get(b"Content-Type", b"").decode()
            kind = kind or next((value.decode() for name, value in event.headers if name == b"content-type"), "")
        elif isinstance(event, h11.Data):
            content += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Reply(status, kind.partition(";")[0], bytes(content))


# What has to come back.


def judge(one: Sending, reply: Reply) -> tuple[str, str]:
    """How a request ended, and what is wrong with that; empty where nothing is."""
    if reply.status != 200:
        outcome = str(reply.status)
        if not hostile.is_error(reply.content):
            return outcome, f"an error of no known form: {reply.content[:200]!r}"
        expected = {"late": (504,), "oversized": (400, 413), "source": (400,)}.get(one.kind, ())
        # A malformed body may have set a deadline too.
        own_deadline = reply.status == 504 and b"deadline_ms" in one.content and b'"code":"deadline"' in reply.content
        refused = one.kind == "malformed" and (400 <= reply.status < 500 or own_deadline)
        return outcome, "" if refused or reply.status in expected else f"refused: {reply.content[:300]!r}"
    if one.known is None:
        return "200", "" if one.kind == "malformed" else f"was answered: {reply.content[:200]!r}"
    if reply.kind != "text/event-stream":
        return "200", compare(one.known, _choices(one.path, json.loads(reply.content)))
    events = [part.removeprefix("data: ") for part in reply.content.decode().split("\n\n") if part]
    if events[-1] != "[DONE]":
        late = one.kind == "late" and '"code":"deadline"' in events[-1]
        return ("504 in a stream", "") if late else ("broken stream", f"the stream ended with {events[-1][:200]}")
    return "200", compare(one.known, _joined(one.path, [json.loads(event) for event in events[:-1]]))


@dataclass
class Choice:
    """A choice of an answer, as `Known` has it."""

    text: str = ""
    kept: int | None = None
    logprobs: tuple[float, ...] = ()


def compare(known: Known, found: Sequence[Choice]) -> str:
    """What differs; empty where nothing does."""
    texts = [choice.text for choice in found]
    if texts != known.texts:
        return f"answered {texts}, alone it is {known.texts}"
    kept = [choice.kept for choice in found]
    if any(there is not None and there != expected for there, expected in zip(kept, known.kept, strict=True)):
        return f"kept {kept} visual tokens, alone {known.kept}"
    for choice, expected in zip(found, known.logprobs, strict=True):
        if len(choice.logprobs) != len(expected) or not np.allclose(choice.logprobs, expected, rtol=0, atol=NEAR):
            return f"logprobs are {choice.logprobs}, alone {expected}"
    return ""


def _choices(path: str, answer: dict[str, Any]) -> list[Choice]:
    if path == RESPONSE:
        return [Choice(answer["output"][0]["content"][0]["text"], answer["foveate"]["kept_tokens"])]
    if path == COMPLETION:
        return [
            Choice(one["text"], None, tuple((one["logprobs"] or {}).get("token_logprobs", ()))) for one in answer["choices"]
        ]
    return [
        Choice(one["message"]["content"], one["foveate"]["kept_tokens"], _likely(path, one["logprobs"]))
        for one in answer["choices"]
    ]


def _likely(path: str, told: Mapping[str, Any] | None) -> tuple[float, ...]:
    if told is None:
        return ()
    return tuple(told["token_logprobs"] if path == COMPLETION else (row["logprob"] for row in told["content"]))


def _joined(path: str, events: Sequence[dict[str, Any]]) -> list[Choice]:
    """The choices that a stream gave."""
    found: dict[int, Choice] = {}
    for event in events:
        for one in event["choices"]:
            choice = found.setdefault(one["index"], Choice())
            choice.text += one["text"] if path == COMPLETION else one["delta"].get("content") or ""
            choice.logprobs += _likely(path, one.get("logprobs"))
            choice.kept = event["foveate"]["kept_tokens"] if event.get("foveate") else choice.kept
    return [found[index] for index in sorted(found)]


# The run.


@asynccontextmanager
async def host_of_pictures() -> AsyncIterator[str]:
    """A host that has a picture, and answers other paths in ways that it should not."""
    good = hostile.picture(112, 112, seed=99)
    answers = {
        "good.png": (b"200 OK", good),
        "redirect": (b"302 Found\r\nlocation: /good.png", b""),
        "missing": (b"404 Not Found", b""),
        "cut": (b"200 OK\r\ncontent-length: 100000", good),
        "html": (b"200 OK", b"<html>"),
        "bomb": (b"200 OK", hostile.png_of(50_000, 50_000)),
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            status, content = answers.get(head.split(b" ")[1].decode().strip("/"), (b"404 Not Found", b""))
            writer.write(b"HTTP/1.1 %s\r\nconnection: close\r\n\r\n%s" % (status, content))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Soak:
    """Clients of one server.

    Args:
        url: of the server.
        process: its id.
        known: good requests.
        host: see `good_bodies`.
    """

    def __init__(self, url: str, process: int, known: Sequence[Known], host: str) -> None:
        self._address = Address.of(url)
        self._process = process
        self._known = known
        self._host = host

    async def block(self, server: int, numbers: range, clients: int) -> Block:
        """Sends the requests of some numbers, so many side by side."""
        began, left = time.monotonic(), iter(numbers)
        outcomes, wrong = Counter[str](), list[str]()

        async def send_in_turn() -> None:
            for number in left:
                kind, outcome, fault = await self._one(number)
                outcomes[f"{kind}: {outcome}"] += 1
                if fault:
                    wrong.append(f"{number} ({kind}): {fault}"[:1_000])

        watch = asyncio.create_task(self._watch(wrong))
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(send_in_turn())
        watch.cancel()
        wrong += await self._unfinished()
        seconds = time.monotonic() - began
        return Block(server, numbers[0], len(numbers), dict(sorted(outcomes.items())), wrong, self._private_mib(), seconds)

    async def _one(self, number: int) -> tuple[str, str, str]:
        one = sending(number, self._known, self._host)
        try:
            reply = await send(self._address, one)
        except (OSError, h11.ProtocolError, TimeoutError) as error:
            # The server closes the connection of a body that it does not want to read to its end.
            cut = one.kind == "oversized" and len(one.content) > BODY_BYTES
            return one.kind, "cut off" if cut else type(error).__name__, "" if cut else f"no answer: {error!r}"
        return (one.kind, "left", "") if reply is None else (one.kind, *judge(one, reply))

    async def _watch(self, wrong: list[str]) -> None:
        """Asks how it is, whatever else it does."""
        while True:
            await asyncio.sleep(1)
            status, content = await get(self._address, "/health", 30)
            if status != 200:
                wrong.append(f"/health answered {status}: {content!r}")

    async def _unfinished(self) -> list[str]:
        """What is still held once nobody waits for anything; what clients left has a moment to end."""
        held: dict[str, float] = {}
        for _ in range(100):
            _, content = await get(self._address, "/metrics", 30)
            lines = [line.rpartition(" ") for line in content.decode().splitlines() if not line.startswith("#")]
            names = ("foveate:num_requests_running", "foveate:num_requests_waiting", "foveate:kv_cache_usage_perc")
            held = {name: float(value) for name, _, value in lines if name.startswith(names) and float(value)}
            if not held:
                return []
            await asyncio.sleep(0.1)
        return [f"nobody waits, and there are {held}"]

    def _private_mib(self) -> float:
        memory = tree_memory(self._process)
        if memory is None or memory.private_bytes is None:
            raise RuntimeError("the server is gone, or this machine does not say what it holds")
        return memory.private_bytes / 2**20


def summarise(blocks: Sequence[Block]) -> Summary:
    """Of all blocks of all servers."""
    outcomes = Counter[str]()
    for block in blocks:
        outcomes.update(block.outcomes)
    private = [block.private_mib for block in blocks]
    return Summary(
        requests=sum(block.requests for block in blocks),
        servers=len({block.server for block in blocks}),
        outcomes=dict(sorted(outcomes.items())),
        wrong=[fault for block in blocks for fault in block.wrong],
        mib_per_1000=slope(blocks),
        private_mib=(min(private), max(private)),
    )


def slope(blocks: Sequence[Block]) -> tuple[float, float] | None:
    """MiB per 1,000 requests and the standard error of that, by least squares; each server has a level of its own."""
    places, levels = list[np.ndarray](), list[np.ndarray]()
    for server in sorted({block.server for block in blocks}):
        own = [block for block in blocks if block.server == server]
        done = np.cumsum([block.requests for block in own])
        warm = done > WARM
        if warm.sum() > 2:
            place, level = done[warm] / 1e3, np.array([block.private_mib for block in own])[warm]
            places.append(place - place.mean())
            levels.append(level - level.mean())
    if not places:
        return None
    place, level = np.concatenate(places), np.concatenate(levels)
    found = float(place @ level / (place @ place))
    free = len(place) - len(places) - 1
    left = level - found * place
    return round(found, 3), round(float(np.sqrt(left @ left / max(1, free) / (place @ place))), 3)


async def soak(bundle: Path, work: Path, requests: int, clients: int, words: Sequence[str]) -> Summary:
    """Runs what is not done yet; what was printed is in `work / "soak.jsonl"` too."""
    path = work / "soak.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    blocks = [msgspec.json.decode(line, type=Block) for line in whole]
    begun, server = sum(block.requests for block in blocks), 1 + max((block.server for block in blocks), default=-1)
    work.mkdir(parents=True, exist_ok=True)
    if begun >= requests:
        return summarise(blocks)
    async with host_of_pictures() as host:
        known = await asyncio.to_thread(answer_alone, bundle, host)
        told = ["--slot-tokens", str(SLOT_TOKENS), "--max-body", str(BODY_BYTES), "--allow-host", host, *words]
        with serve_bundle(bundle, told, work / "server.log") as (url, process):
            run = Soak(url, process, known, host)
            for first in range(begun, requests, BLOCK):
                blocks.append(await run.block(server, range(first, min(first + BLOCK, requests)), clients))
                replace_file(path, b"".join(msgspec.json.encode(block) + b"\n" for block in blocks))
                click.echo(msgspec.json.encode(blocks[-1]).decode())
    return summarise(blocks)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for results and the server's log.")
@click.option("--requests", default=20_000, show_default=True)
@click.option("--clients", default=16, show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads of the server.")
def main(bundle: Path, work: Path, requests: int, clients: int, threads: int) -> None:
    found = asyncio.run(soak(bundle, work, requests, clients, ["--threads", str(threads)]))
    click.echo(msgspec.json.encode(found).decode())
    raise SystemExit(1 if found.wrong else 0)


if __name__ == "__main__":
    main()

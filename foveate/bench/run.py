"""`bench_server`: every load with every keep ratio, in turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from itertools import count
from time import perf_counter

from foveate.bench.client import Address, Client
from foveate.bench.drive import Message, drive
from foveate.bench.plan import BenchPlan, Load
from foveate.bench.questions import Questions, chat_body, open_questions
from foveate.bench.results import Benchmark, BenchSetting, LoadPoint, Sent, ServerMemory, summarise
from foveate.bench.server import Server, larger, look_at, scraped_memory, tree_memory
from foveate.engines import OptionError, usable_cpus

Progress = Callable[[int, int], None]
_SAMPLE_S = 0.5


def bench_server(
    url: str,
    plan: BenchPlan,
    model: str | None = None,
    api_key: str | None = None,
    target: str | None = None,
    process: int | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measures a server under load.

    Args:
        url: where it is.
        plan: what to send.
        model: name of the model to ask; None takes the only one.
        api_key: sent as a bearer token.
        target: what the report calls it; None takes the URL.
        process: id of the server, whose memory is looked at; None asks its `/metrics`.
        progress: gets the number of finished points and of all.

    Raises:
        OptionError: the server can't be reached, has no such model, or refuses every request of the warm-up.
        DataError: the questions can't be read or sent.
        MissingPackageError: h11 is not installed.
    """
    address = Address.of(url, api_key)
    questions = open_questions(plan)
    return asyncio.run(_bench(address, url, plan, questions, model, target or url, process, progress))


async def _bench(
    address: Address,
    url: str,
    plan: BenchPlan,
    questions: Questions,
    model: str | None,
    target: str,
    process: int | None,
    progress: Progress | None,
) -> Benchmark:
    server = await look_at(address, url)
    client = Client(address, plan.timeout_s)
    subject = _Subject(client, plan, questions, server, server.choose(model), process)
    await subject.warm_up()
    ratios = plan.ratios if server.ours else (1.0,)
    cells = [_Cell(load, keep) for load in plan.loads for keep in ratios]
    for number in range(plan.rounds):
        for done, cell in enumerate(cells, start=1 + number * len(cells)):
            await subject.measure(cell, number)
            if progress:
                progress(done, plan.rounds * len(cells))
    points = [cell.point(plan) for cell in cells]
    return Benchmark(_setting(subject, target), points)


@dataclass
class _Cell:
    """A load and a keep ratio, and what its rounds measured."""

    load: Load
    keep: float
    requests: list[Sent] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory: ServerMemory | None = None

    def point(self, plan: BenchPlan) -> LoadPoint:
        chunks = sum(sent.chunks for sent in self.requests)
        return LoadPoint(
            kind=self.load.kind,
            value=self.load.value,
            keep=self.keep,
            seconds=self.seconds,
            figures=summarise(self.requests, self.seconds, plan.ttft_slo_ms, plan.itl_slo_ms),
            memory=self.memory,
            generator_cpu_share=self.cpu_seconds / self.seconds,
            generator_token_us=1e6 * self.cpu_seconds / chunks if chunks else None,
            requests=self.requests,
        )


@dataclass
class _Subject:
    """A server and what it is asked."""

    client: Client
    plan: BenchPlan
    questions: Questions
    server: Server
    model: str
    process: int | None
    _numbers: count[int] = field(default_factory=count)

    async def warm_up(self) -> None:
        """Requests one after the other, that do not count.

        Raises:
            OptionError: all of them failed, for another reason than that the server is busy.
        """
        found = [
            await self._send(self._message(place, 1.0), perf_counter(), perf_counter()) for place in range(self.plan.warm_up)
        ]
        errors = {sent.error for sent in found}
        self.client.error_examples, examples = {}, self.client.error_examples
        if "" not in errors and "HTTP 429" not in errors:
            kind = found[-1].error
            raise OptionError(
                f"the server answers no request of the warm-up: {kind}, {examples[kind]}. Check the model and what it takes.",
                options=("target", "model"),
            )

    async def measure(self, cell: _Cell, number: int) -> None:
        """One round of a cell."""

        def message(place: int) -> Message:
            return self._message(place, cell.keep)

        async with self._watched(cell):
            driven = await drive(cell.load, message, self._send, self.plan, number)
        cell.requests += driven.requests
        cell.seconds += driven.seconds
        cell.cpu_seconds += driven.cpu_seconds

    def _message(self, place: int, keep: float) -> Message:
        content, picture = self.questions.ask(place, next(self._numbers))
        return Message(chat_body(content, self.model, self.plan, keep if self.server.ours and picture else None), picture)

    async def _send(self, message: Message, due: float, start: float) -> Sent:
        return await self.client.send(message.body, message.picture, due, start)

    @asynccontextmanager
    async def _watched(self, cell: _Cell) -> AsyncIterator[None]:
        """Notes the server's memory: of a process now and then, of `/metrics` behind the load, which it shall not disturb."""
        watcher = asyncio.create_task(self._watch(cell)) if self.process is not None else None
        try:
            yield
        finally:
            if watcher is not None:
                watcher.cancel()
        if self.process is None:
            cell.memory = larger(cell.memory, await scraped_memory(self.client.address))

    async def _watch(self, cell: _Cell) -> None:
        assert self.process is not None
        while True:
            cell.memory = larger(cell.memory, tree_memory(self.process))
            await asyncio.sleep(_SAMPLE_S)


def _setting(subject: _Subject, target: str) -> BenchSetting:
    plan = subject.plan
    return BenchSetting(
        target=target,
        server=subject.server.name,
        model=subject.model,
        questions=subject.questions.name,
        requests=plan.requests if plan.seconds is None else None,
        seconds=plan.seconds,
        rounds=plan.rounds,
        warm_up=plan.warm_up,
        max_tokens=plan.max_tokens,
        ignore_eos=plan.ignore_eos,
        seed=plan.seed,
        ttft_slo_ms=plan.ttft_slo_ms,
        itl_slo_ms=plan.itl_slo_ms,
        encode=plan.encode,
        cpus=usable_cpus(),
        date=date.today().isoformat(),
        foveate_version=version("foveate"),
        remarks=_remarks(subject),
        error_examples=subject.client.error_examples,
    )


def _remarks(subject: _Subject) -> list[str]:
    found = []
    if subject.plan.encode is not None and not subject.server.ours:
        found.append("The server is not foveate's, so its vision tower computed everything, whatever encode says.")
    left_out = [keep for keep in subject.plan.ratios if keep != 1]
    if left_out and not subject.server.ours:
        listed = ", ".join(f"{keep:g}" for keep in left_out)
        found.append(f"The server is not foveate's, so only keep 1 was measured, without {listed}.")
    if subject.questions.repeats:
        found.append(
            "Every point asks about the same pictures: a server with a cache of pictures answers the later ones sooner."
        )
    return found

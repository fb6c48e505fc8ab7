"""The two kinds of load: an open loop sends when it is due, a closed loop when a client has its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from itertools import count
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from foveate.bench.plan import BenchPlan, Load
from foveate.bench.results import Sent


class Message(NamedTuple):
    """A request that is ready to be sent."""

    body: bytes
    picture: bool


Send = Callable[[Message, float, float], Coroutine[None, None, Sent]]
"""Gets the request, when it is due and when the point started, in seconds of `perf_counter`."""


class Driven(NamedTuple):
    """What came of a load.

    Attributes:
        requests: in the order in which they were due.
        seconds: until the last answer.
        cpu_seconds: of this process meanwhile.
    """

    requests: list[Sent]
    seconds: float
    cpu_seconds: float


def arrivals(rate: float, plan: BenchPlan, number: int) -> list[float]:
    """Seconds at which the requests of an open loop are due: a Poisson process, its first arrival at 0.

    Args:
        rate: requests a second.
        plan: how many, or how long.
        number: of the round; every keep ratio meets the same arrivals.
    """
    chance = np.random.default_rng([plan.seed, 2, number])
    due = 0.0
    found: list[float] = []
    while len(found) < plan.requests if plan.seconds is None else due < plan.seconds:
        found.append(due)
        due += float(chance.exponential(1 / rate))
    return found


async def drive(load: Load, messages: Callable[[int], Message], send: Send, plan: BenchPlan, number: int) -> Driven:
    """One round of a load.

    Args:
        load: of which kind and how much.
        messages: makes the request of a place.
        send: sends one.
        plan: how many, or how long.
        number: of the round.
    """
    if load.kind == "open":
        due = arrivals(load.value, plan, number)
        return await _open(due, list(map(messages, range(len(due)))), send)
    # Those of a fixed number are made before the clock starts.
    places = map(messages, count()) if plan.seconds is not None else iter([*map(messages, range(plan.requests))])
    return await _closed(int(load.value), places, send, plan.seconds)


async def _open(due: Iterable[float], messages: Iterable[Message], send: Send) -> Driven:
    start, cpu = perf_counter(), process_time()
    tasks = []
    async with asyncio.TaskGroup() as group:
        for offset, message in zip(due, messages, strict=True):
            await asyncio.sleep(start + offset - perf_counter())
            tasks.append(group.create_task(send(message, start + offset, start)))
    return Driven([task.result() for task in tasks], perf_counter() - start, process_time() - cpu)


async def _closed(clients: int, messages: Iterator[Message], send: Send, seconds: float | None) -> Driven:
    start, cpu = perf_counter(), process_time()
    found: list[Sent] = []

    async def client() -> None:
        for message in messages:
            if seconds is not None and perf_counter() - start >= seconds:
                return
            found.append(await send(message, perf_counter(), start))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return Driven(sorted(found, key=lambda sent: sent.due_ms), perf_counter() - start, process_time() - cpu)

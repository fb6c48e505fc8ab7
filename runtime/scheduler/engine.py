"""Requests in, chunks out: one thread has the decoder, and others open, see and score pictures beside it.

A turn of the engine's thread is one decode step for all sequences that run, and at most one piece of a prompt. Between turns
sequences join and leave. Two lanes prepare what comes next, one for requests with pictures and one for the others, which are
quick: a long picture slows the tokens of others and never stops them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, Self

from foveate.engines import (
    BackendError,
    BusyError,
    CancelledError,
    DeadlineError,
    FoveateError,
    Manifest,
    RequestError,
)
from foveate.engines.errors import reason_of
from foveate.runtime.budget import Budget
from foveate.runtime.latency import LatencyModel, Unmeasured
from foveate.runtime.scheduler.options import EngineOptions, EngineStats
from foveate.runtime.scheduler.pressure import Pressure
from foveate.runtime.scheduler.queue import Queue
from foveate.runtime.scheduler.rows import Rows
from foveate.runtime.scheduler.ticket import Ticket
from foveate.runtime.sequence import TokenSequence
from foveate.runtime.stages import Stopwatch
from foveate.runtime.stream import enough_memory, finished
from foveate.runtime.text_model import TextModel
from foveate.runtime.types import Chunk, Encoded, Prepared, Request

_AHEAD = 2
"""Requests that a lane prepares before there is a slot: their visual tokens are in memory."""


class Host(Protocol):
    """What an engine needs of a pipeline."""

    manifest: Manifest
    latency: LatencyModel | Unmeasured | None
    text_model: TextModel

    def prepare(self, request: Request) -> Prepared: ...

    def admit(
        self,
        request: Request,
        encoded: Encoded | None = None,
        prepared: Prepared | None = None,
        why: str = "",
        capacity_tokens: int | None = None,
    ) -> TokenSequence: ...


class Engine:
    """Many requests on one pipeline; see the module. `with` closes it. Threads may share it.

    Args:
        host: the pipeline; other threads may use it at the same time.
        tokens: of a slot.
        options: how.

    Raises:
        OptionError: `ttft_slo_ms` without measured latencies or a curve.
    """

    def __init__(self, host: Host, tokens: int, options: EngineOptions) -> None:
        self._host = host
        self._options = options
        scorer, latency = host.manifest.scorer, host.latency
        slo_ms = options.ttft_slo_ms
        self._pressure = None if slo_ms is None else Pressure(slo_ms, scorer, latency, options.min_retained)
        self._rows = Rows(host.text_model, options.slots, tokens, host.manifest.prompt.pad_token_id, options.prefix_reuse)
        self._changed = threading.Condition()
        self._ids = count(1)
        self._lanes = {"visual": Queue(), "text": Queue()}
        self._preparing: dict[str, list[Ticket]] = {"visual": [], "text": []}
        self._ready: deque[tuple[Ticket, TokenSequence]] = deque()
        self._owners: dict[TokenSequence, Ticket] = {}
        self._draining = self._closed = False
        self._finished: Counter[str] = Counter()
        self._steps = self._turns = self._reused = 0
        self._moved = time.monotonic()
        self._threads = [threading.Thread(target=self._turn_for_ever, name="foveate-engine", daemon=True)]
        self._threads += [
            threading.Thread(target=self._prepare_for_ever, args=(lane,), name=f"foveate-{lane}", daemon=True)
            for lane in self._lanes
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        request: Request,
        *,
        client: str = "",
        priority: int = 0,
        deadline_ms: float | None = None,
        flexible: bool = False,
    ) -> Ticket:
        """Takes a request; returns at once.

        Args:
            request: the question.
            client: whose it is; clients take turns.
            priority: lower numbers go first.
            deadline_ms: end it with a `DeadlineError` if it is not done by then.
            flexible: its budget may shrink under load, see `EngineOptions.ttft_slo_ms`.

        Raises:
            RequestError: a flexible request with a budget of its own.
            BusyError: too many wait, or the engine drains.
        """
        if flexible and (request.budget != Budget() or request.limits_encoding):
            raise RequestError("a flexible request has a budget of its own. Leave out the budget, or flexible.")
        ticket = Ticket(next(self._ids), request, client, priority, deadline_ms, flexible, self._notify)
        with self._changed:
            if self._draining:
                raise BusyError("no more requests are taken here. Ask another server, or ask again later.")
            waiting = sum(map(len, self._lanes.values()))
            if waiting >= self._options.max_waiting:
                raise BusyError(f"{waiting} requests wait already, which is the limit. Ask again later.")
            if self._is_idle():
                self._moved = time.monotonic()
            self._lanes[ticket.lane].push(ticket)
            self._changed.notify_all()
        return ticket

    def stats(self) -> EngineStats:
        """What it does now."""
        with self._changed:
            waiting, preparing = (sum(map(len, queues.values())) for queues in (self._lanes, self._preparing))
            idle_ms = 0.0 if self._is_idle() else 1e3 * (time.monotonic() - self._moved)
            running = len(self._owners)
            return EngineStats(
                *(waiting, preparing, len(self._ready), running, self._rows.slots),
                *(self._rows.held_tokens, self._rows.slots * self._rows.capacity_tokens),
                *(self._steps, self._turns, idle_ms, dict(self._finished), self._reused),
            )

    def drain(self) -> None:
        """Takes no more requests; those that it has go on."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Waits until all requests are done and ends the threads; another call does nothing.

        Args:
            timeout: seconds after which requests that go on are cancelled; None waits for all.
        """
        self.drain()
        with self._changed:
            if not self._changed.wait_for(self._is_idle, timeout):
                for ticket in self._all():
                    ticket.cancel()
                self._changed.wait_for(self._is_idle, 60)
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(timeout=None if kind is None else 0)

    def _all(self) -> list[Ticket]:
        waiting = [ticket for queue in self._lanes.values() for ticket in queue]
        preparing = [ticket for tickets in self._preparing.values() for ticket in tickets]
        return [*waiting, *preparing, *(ticket for ticket, _ in self._ready), *self._owners.values()]

    def _is_idle(self) -> bool:
        return not (any(map(len, self._lanes.values())) or any(self._preparing.values()) or self._ready or self._owners)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # What the lanes do: everything before the decoder.

    def _prepare_for_ever(self, lane: str) -> None:
        while (ticket := self._next(lane)) is not None:
            began = time.monotonic()
            try:
                with ticket.interrupt.covers():
                    sequence = self._prepare(ticket, lane)
            except BaseException as error:
                with self._changed:
                    self._preparing[lane].remove(ticket)
                    self._end(ticket, error)
            else:
                with self._changed:
                    self._preparing[lane].remove(ticket)
                    ticket.state = "ready"
                    self._ready.append((ticket, sequence))
                    self._tell()
            with self._changed:
                self._lanes[lane].spend(ticket.client, time.monotonic() - began)

    def _next(self, lane: str) -> Ticket | None:
        """The next ticket of a lane, once there is one and room for it; None at the end."""
        queue = self._lanes[lane]

        def can() -> bool:
            ahead = sum(1 for ticket, _ in self._ready if ticket.lane == lane)
            return self._closed or (len(queue) > 0 and ahead < max(_AHEAD, self._rows.free))

        with self._changed:
            self._changed.wait_for(can)
            if self._closed:
                return None
            ticket = queue.pop()
            ticket.state = "preparing"
            self._preparing[lane].append(ticket)
            self._tell()
        return ticket

    @enough_memory()
    def _prepare(self, ticket: Ticket, lane: str) -> TokenSequence:
        began = time.monotonic()
        ticket.interrupt.check()
        stopwatch = Stopwatch()
        with stopwatch("preprocess"):
            prepared = self._host.prepare(ticket.request)
        request, why, predicted_ms = ticket.request, "", 0.0
        if self._pressure is not None and ticket.flexible:
            with self._changed:
                behind = [1e3 * (began - other.submitted) for other in sorted(self._lanes[lane], key=lambda one: one.id)]
                waited = [1e3 * (began - ticket.submitted), *behind]
                request, why, predicted_ms = self._pressure.shape(request, prepared, waited)
        sequence = self._host.admit(request, prepared=prepared, why=why, capacity_tokens=self._rows.capacity_tokens)
        sequence.stage_ms["preprocess_ms"] = sequence.stage_ms.get("preprocess_ms", 0.0) + stopwatch.stage_ms["preprocess_ms"]
        ticket.predicted_ms = predicted_ms
        ticket.began = began
        return sequence

    # What the engine's thread does: the decoder.

    def _turn_for_ever(self) -> None:
        while True:
            with self._changed:
                self._drop_stopped()
                self._changed.notify_all()
                if self._closed:
                    return
                if not (self._ready or self._owners):
                    self._changed.wait(self._until_deadline())
                    continue
            self._turn()

    def _until_deadline(self) -> float | None:
        """Seconds until the next request that waits expires."""
        deadlines = [ticket.deadline for ticket in self._all() if ticket.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) + 1e-3 if deadlines else None

    def _turn(self) -> None:
        rows = self._rows
        if rows.filling is None and rows.free:
            self._begin()
        if rows.filling is not None:
            self._fill()
        if rows.running:
            self._step()
        with self._changed:
            self._turns += 1
            self._tell()

    def _begin(self) -> None:
        """Gives the next prompt a slot."""
        with self._changed:
            if not self._ready:
                return
            ticket, sequence = self._ready.popleft()
            ticket.state = "prefill"
            self._owners[sequence] = ticket
        sequence.stage_ms["queue_ms"] = max(0.0, 1e3 * (time.monotonic() - ticket.submitted) - sum(sequence.stage_ms.values()))
        self._guard(sequence, lambda: self._begin_sequence(sequence))

    def _begin_sequence(self, sequence: TokenSequence) -> None:
        filling = self._rows.begin(sequence)
        sequence.facts["reused_tokens"] = filling.reused
        self._reused += filling.reused

    def _fill(self) -> None:
        """One piece of a prompt; all of it where nobody waits for a step."""
        filling = self._rows.filling
        assert filling is not None
        sequence, ticket = filling.sequence, self._owners[filling.sequence]
        began = time.monotonic()
        most = self._options.prefill_tokens if self._rows.running else None
        chunk = self._guard(sequence, lambda: self._rows.fill(most))
        self._lanes[ticket.lane].spend(ticket.client, time.monotonic() - began)
        if chunk is not None:
            if self._pressure is not None and ticket.predicted_ms:
                self._pressure.learn(ticket.predicted_ms, 1e3 * (time.monotonic() - ticket.began))
            ticket.state = "running"
            self._give(sequence, chunk)

    def _guard(self, sequence: TokenSequence, run: Callable[[], Any]) -> Any:
        """Does something for one sequence alone; what goes wrong ends that one."""
        ticket = self._owners[sequence]
        try:
            with ticket.interrupt.covers(), enough_memory():
                return run()
        except BaseException as error:
            self._rows.abandon()
            with self._changed:
                self._owners.pop(sequence, None)
                self._end(ticket, error)
            return None

    def _step(self) -> None:
        """One token more for each sequence that runs."""
        began, sharing = time.monotonic(), len(self._rows.running)
        try:
            with enough_memory():
                outcomes = list(self._rows.step())
        except BaseException as error:  # of the run: what the others hold can't be trusted either
            self._fail_all(error)
            return
        spent = (time.monotonic() - began) / sharing
        with self._changed:
            self._steps += 1
        for sequence, outcome in outcomes:
            ticket = self._owners[sequence]
            self._lanes[ticket.lane].spend(ticket.client, spent)
            if isinstance(outcome, FoveateError):
                self._leave(sequence, outcome)
            else:
                self._give(sequence, outcome)

    def _give(self, sequence: TokenSequence, chunk: Chunk) -> None:
        self._owners[sequence].push(chunk)
        if chunk.finish_reason is not None:
            self._leave(sequence)

    def _leave(self, sequence: TokenSequence, error: BaseException | None = None) -> None:
        """Frees a sequence's slot and ends its ticket."""
        self._rows.leave(sequence)
        with self._changed:
            ticket = self._owners.pop(sequence)
            if error is None:
                self._finished[sequence.finish_reason or ""] += 1
                ticket.finish(finished(sequence, self._rows.token_bytes * sequence.cache_tokens))
            else:
                self._end(ticket, error)

    def _fail_all(self, error: BaseException) -> None:
        self._rows.reset()
        with self._changed:
            owners, self._owners = self._owners, {}
            for ticket in owners.values():
                self._end(ticket, error)

    def _drop_stopped(self) -> None:
        """Ends what was cancelled, and what has no time left. What a lane works on ends there."""
        now = time.monotonic()
        for ticket in self._all():
            if ticket.deadline is not None and now >= ticket.deadline:
                ticket.expire()
        for queue in self._lanes.values():
            for ticket in [ticket for ticket in queue if ticket.stopping]:
                queue.remove(ticket)
                self._end(ticket, ticket.stopping)
        for ticket, sequence in [pair for pair in self._ready if pair[0].stopping]:
            self._ready.remove((ticket, sequence))
            self._end(ticket, ticket.stopping)
        for sequence, ticket in [pair for pair in self._owners.items() if pair[1].stopping]:
            if self._rows.filling is not None and self._rows.filling.sequence is sequence:
                self._rows.abandon()
                self._owners.pop(sequence)
                self._end(ticket, ticket.stopping)
            else:
                self._leave(sequence, ticket.stopping)

    def _end(self, ticket: Ticket, error: BaseException | None) -> None:
        """Ends a ticket with an error: why it was told to end, where it was."""
        error = ticket.stopping or error
        if not isinstance(error, FoveateError):
            unforeseen = BackendError(f"the request failed in a way that nobody foresaw: {reason_of(error or BaseException())}")
            unforeseen.__cause__ = error
            error = unforeseen
        kinds = {CancelledError: "cancelled", DeadlineError: "deadline"}
        self._finished[kinds.get(type(error), "error")] += 1
        ticket.finish(error=error)
        self._tell()

    def _tell(self) -> None:
        """Something went on; with the lock."""
        self._moved = time.monotonic()
        self._changed.notify_all()

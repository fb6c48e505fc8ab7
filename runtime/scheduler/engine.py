"""Requests in, chunks out: one thread has the decoder, and others open, see and score pictures beside it.

A turn of the engine's thread is one decode step for all sequences that run, and at most one piece of a prompt. Between turns
sequences join and leave. Two lanes prepare what comes next, one for requests with pictures and one for the others, which are
quick: a long picture slows the tokens of others and never stops them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
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
from foveate.engines.system.niceness import give_way
from foveate.runtime.budget import Budget
from foveate.runtime.latency import LatencyModel, Unmeasured
from foveate.runtime.scheduler.options import EngineOptions, EngineStats
from foveate.runtime.scheduler.pace import Pace
from foveate.runtime.scheduler.pressure import Pressure
from foveate.runtime.scheduler.queue import Queue
from foveate.runtime.scheduler.rows import Rows
from foveate.runtime.scheduler.ticket import Ticket
from foveate.runtime.sequence import TokenSequence
from foveate.runtime.stages import Stopwatch
from foveate.runtime.stream import enough_memory, finished
from foveate.runtime.text_model import TextModel
from foveate.runtime.types import Begun, Chunk, Encoded, Prepared, Request
from foveate.runtime.values import number

_PATIENCE = 60.0
"""Seconds to wait for what can't be ended in its middle."""
_LONGEST_WAIT = 3600.0
"""Seconds between looks at what waits."""
_AHEAD = 2
"""Requests that a lane prepares before there is a slot: their visual tokens are in memory."""


class Host(Protocol):
    """What an engine needs of a pipeline."""

    manifest: Manifest
    latency: LatencyModel | Unmeasured | None
    vision_nice: int
    text_model: TextModel

    def prepare(self, request: Request) -> Prepared: ...

    def admit(self, request: Request, encoded: Encoded | None = None, begun: Begun | None = None) -> TokenSequence: ...


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
        self._tokens = tokens
        self._pace = Pace(options.prefill_tokens)
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
        if flexible and (request.budget != Budget() or request.limits_encoding or request.select is not None):
            raise RequestError(
                "a flexible request has a budget or a selector of its own, and it is held against the bundle's curve. "
                "Leave them out, or do without keep 'auto'."
            )
        if deadline_ms is not None:
            deadline_ms = number("deadline_ms", deadline_ms, lambda ms: ms > 0, "above 0")
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

    @property
    def full(self) -> bool:
        """Whether so many wait that `submit` would refuse another one."""
        with self._changed:
            return sum(map(len, self._lanes.values())) >= self._options.max_waiting

    def stats(self) -> EngineStats:
        """What it does now."""
        with self._changed:
            waiting, preparing = (sum(map(len, queues.values())) for queues in (self._lanes, self._preparing))
            idle_ms = 0.0 if self._is_idle() else 1e3 * (time.monotonic() - self._moved)
            return EngineStats(
                waiting=waiting,
                preparing=preparing,
                ready=len(self._ready),
                running=len(self._owners),
                slots=self._rows.slots,
                kv_tokens_used=self._rows.held_tokens,
                kv_tokens=self._rows.slots * self._rows.capacity_tokens,
                steps=self._steps,
                turns=self._turns,
                idle_ms=idle_ms,
                finished=dict(self._finished),
                reused_tokens=self._reused,
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
            if not self._changed.wait_for(self._is_over, timeout):
                for ticket in self._all():
                    ticket.cancel()
                self._changed.wait_for(self._is_over, _PATIENCE)
            self._end_all(CancelledError("the engine was closed."))
        for thread in self._threads:
            thread.join(_PATIENCE)

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

    def _is_over(self) -> bool:
        return self._closed or self._is_idle()

    def _end_all(self, error: BaseException) -> None:
        """The end: whatever is not done is told so."""
        self._draining = self._closed = True
        for ticket in self._all():
            ticket.finish(error=ticket.stopping or error)
        self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # What the lanes do: everything before the decoder.

    def _prepare_for_ever(self, lane: str) -> None:
        if lane == "visual":
            give_way(self._host.vision_nice)
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
        ticket.began = time.monotonic()
        ticket.interrupt.check()
        stopwatch = Stopwatch()
        with stopwatch("preprocess"):
            prepared = self._host.prepare(ticket.request)
        begun = Begun(prepared, stopwatch.stage_ms, self._tokens)
        if self._pressure is None or not ticket.flexible:
            return self._host.admit(ticket.request, begun=begun)
        with self._changed:
            behind = sorted(self._lanes[lane], key=lambda other: other.id)
            waited = [1e3 * (ticket.began - other.submitted) for other in (ticket, *behind)]
            request, why, ticket.predicted_ms = self._pressure.shape(ticket.request, prepared, waited)
        try:
            return self._host.admit(request, begun=replace(begun, why=why))
        except RequestError:  # what the tower saw is not what the curve was measured with
            if not why:
                raise
            return self._host.admit(ticket.request, begun=begun)

    # What the engine's thread does: the decoder.

    def _turn_for_ever(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except BaseException as error:
                self._survive(error)

    def _survive(self, error: BaseException) -> None:
        """What nobody foresaw ends what runs; if not even that can be done, everything."""
        try:
            self._fail_all(error)
        except BaseException as worse:
            with self._changed:
                self._end_all(_as_ours(worse))

    def _until_deadline(self) -> float:
        """Seconds until the next request that waits expires."""
        deadlines = [ticket.deadline for ticket in self._all() if ticket.deadline is not None and not ticket.stopping]
        return min(max(0.0, min(deadlines, default=math.inf) - time.monotonic()) + 1e-3, _LONGEST_WAIT)

    def _turn(self) -> None:
        for sequence, ticket in self._drop_stopped():
            self._leave(sequence, ticket.stopping)
        with self._changed:
            self._changed.notify_all()
            if not (self._closed or self._ready or self._owners):
                self._changed.wait(self._until_deadline())
                return
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
        began, before = time.monotonic(), filling.done
        most = self._pace.tokens if self._rows.running else None
        chunk = self._guard(sequence, lambda: self._rows.fill(most))
        now = time.monotonic()
        if filling.done > before:
            self._pace.read(filling.done - before, now - began)
        with self._changed:
            self._lanes[ticket.lane].spend(ticket.client, now - began)
            if chunk is not None and self._pressure is not None and ticket.predicted_ms:
                self._pressure.learn(ticket.predicted_ms, 1e3 * (now - ticket.began))
        if chunk is not None:
            # All that was not done for it, it waited for others: the stages add up to what its reader sees.
            sequence.stage_ms["queue_ms"] = max(0.0, 1e3 * (now - ticket.submitted) - sum(sequence.stage_ms.values()))
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
        taken = time.monotonic() - began
        self._pace.stepped(taken)
        spent = taken / sharing
        with self._changed:
            self._steps += 1
            for sequence, _ in outcomes:
                ticket = self._owners[sequence]
                self._lanes[ticket.lane].spend(ticket.client, spent)
        for sequence, outcome in outcomes:
            if isinstance(outcome, Chunk):
                self._give(sequence, outcome)
            else:
                self._leave(sequence, outcome)

    def _give(self, sequence: TokenSequence, chunk: Chunk) -> None:
        ticket = self._owners[sequence]
        ticket.push(chunk)
        if sequence.decode_ms:  # as its reader sees it, with what was done for others in between
            sequence.decode_ms[-1] = 1e3 * ticket.gaps_s[-1]
        if chunk.finish_reason is not None:
            self._leave(sequence)

    def _leave(self, sequence: TokenSequence, error: BaseException | None = None) -> None:
        """Frees a sequence's slot and ends its ticket."""
        if self._rows.filling is not None and self._rows.filling.sequence is sequence:
            self._rows.abandon()
        else:
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

    def _drop_stopped(self) -> list[tuple[TokenSequence, Ticket]]:
        """Ends what was cancelled or has no time left and waits; those that have a slot it gives back. What a lane works on
        ends there."""
        now = time.monotonic()
        with self._changed:
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
            return [pair for pair in self._owners.items() if pair[1].stopping]

    def _end(self, ticket: Ticket, error: BaseException | None) -> None:
        """Ends a ticket with an error: why it was told to end, where it was."""
        error = _as_ours(ticket.stopping or error or BaseException())
        kinds = {CancelledError: "cancelled", DeadlineError: "deadline"}
        self._finished[kinds.get(type(error), "error")] += 1
        ticket.finish(error=error)
        self._tell()

    def _tell(self) -> None:
        """Something went on; with the lock."""
        self._moved = time.monotonic()
        self._changed.notify_all()


def _as_ours(error: BaseException) -> FoveateError:
    """What nobody foresaw, said so."""
    if isinstance(error, FoveateError):
        return error
    unforeseen = BackendError(f"the request failed in a way that nobody foresaw: {reason_of(error)}")
    unforeseen.__cause__ = error
    return unforeseen

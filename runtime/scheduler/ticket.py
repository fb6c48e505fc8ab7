"""An accepted request, for whoever waits for its answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from typing import Any, Literal

from foveate.engines import CancelledError, DeadlineError, Interrupt
from foveate.runtime.types import Answer, Chunk, Request

State = Literal["waiting", "preparing", "ready", "prefill", "running", "done"]


class Ticket:
    """One request in an engine. Iterating gives its chunks as they come, `answer` what they come to; one reader at a time.

    Args:
        number: its id.
        request: as given.
        client: whose it is; clients take turns.
        priority: lower ones go first.
        deadline_ms: what it may take in all; None for any time.
        flexible: its budget may shrink under load.
        on_stop: called once it is told to end.

    Attributes:
        interrupt: ends what is done for it.
        lane: whether it has pictures: `visual` or `text`.
        submitted: when, by `time.monotonic`.
        began: when its turn came.
        first_token_at, finished_at: when, likewise; None before.
        gaps_s: seconds from each chunk to the next.
        predicted_ms: what it was expected to take from there to its first token, alone; 0 where nobody asked.
        state: what happens to it now.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        client: str,
        priority: int,
        deadline_ms: float | None,
        flexible: bool,
        on_stop: Callable[[], None],
    ) -> None:
        self.id = number
        self.request = request
        self.client = client
        self.priority = priority
        self.flexible = flexible
        self.submitted = time.monotonic()
        self.deadline = None if deadline_ms is None else self.submitted + deadline_ms / 1e3
        self.deadline_ms = deadline_ms
        self.interrupt = Interrupt()
        self.state: State = "waiting"
        self.lane = "visual" if _has_pictures(request) else "text"
        self.began = self.submitted
        self.predicted_ms = 0.0
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.gaps_s: list[float] = []
        self._last_at = self.submitted
        self._on_stop = on_stop
        self._news = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._stopping: BaseException | None = None
        self._listener: Callable[[], object] | None = None

    @property
    def done(self) -> bool:
        """Whether it ended, in whatever way."""
        return self.state == "done"

    @property
    def stopping(self) -> BaseException | None:
        """Why it was told to end; None where it was not."""
        return self._stopping

    @property
    def error(self) -> BaseException | None:
        """What it ended with; None while it goes on, and where it was answered."""
        return self._error

    def cancel(self) -> None:
        """Ends it, in whatever it does; one that is done stays as it is. From any thread."""
        self.stop(CancelledError("the request was cancelled."))

    def expire(self) -> None:
        """Ends it because its time is over."""
        fact = f"the request was not done within its deadline of {self.deadline_ms:g} ms"
        self.stop(DeadlineError(f"{fact}. Give it more, or keep fewer visual tokens."))

    def stop(self, error: BaseException) -> None:
        """Ends it with an error; the first one counts."""
        with self._news:
            if self.done or self._stopping is not None:
                return
            self._stopping = error
        self.interrupt.set()
        self._on_stop()

    def answer(self, timeout: float | None = None) -> Answer:
        """Waits for the finished answer.

        Args:
            timeout: seconds.

        Raises:
            TimeoutError: it is not done by then; it goes on.
            FoveateError: what it ended with.
        """
        with self._news:
            if not self._news.wait_for(lambda: self.done, timeout):
                raise TimeoutError(f"request {self.id} is not done after {timeout:g} s")
        return self._result()

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks that were not read yet; raises what it ended with, if that is an error."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._chunks or self.done)
                if not self._chunks:
                    break
                chunk = self._chunks.popleft()
            yield chunk
        self._result()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The same in an event loop."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        self._listen(lambda: loop.call_soon_threadsafe(news.set))
        try:
            while True:
                news.clear()
                while self._chunks:
                    yield self._chunks.popleft()
                if self.done and not self._chunks:
                    break
                await news.wait()
        finally:
            self._listen(None)
        self._result()

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._wait().__await__()

    async def _wait(self) -> Answer:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        self._listen(lambda: loop.call_soon_threadsafe(news.set) if self.done else None)
        try:
            while not self.done:
                await news.wait()
        finally:
            self._listen(None)
        return self._result()

    def _listen(self, listener: Callable[[], object] | None) -> None:
        with self._news:
            self._listener = listener
        if listener is not None and (self._chunks or self.done):
            listener()

    def _result(self) -> Answer:
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def push(self, chunk: Chunk) -> None:
        """Gives out a chunk; the engine calls it."""
        now = time.monotonic()
        with self._news:
            if self.first_token_at is None:
                self.first_token_at = now
            else:
                self.gaps_s.append(now - self._last_at)
            self._last_at = now
            self._chunks.append(chunk)
            self._tell()

    def finish(self, answer: Answer | None = None, error: BaseException | None = None) -> None:
        """Ends it; the engine calls it. The first end counts."""
        with self._news:
            if self.done:
                return
            self.finished_at = time.monotonic()
            self._answer, self._error = answer, error
            self.state = "done"
            self._tell()

    def _tell(self) -> None:
        self._news.notify_all()
        if self._listener is not None:
            try:
                self._listener()
            except RuntimeError:  # its event loop is closed
                self._listener = None


def _has_pictures(request: Request) -> bool:
    contents = [message.get("content") for message in request.messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    kinds = [part.get("type") for part in parts if isinstance(part, Mapping)]
    return bool(request.images or request.videos) or any(kind not in ("text", None) for kind in kinds)

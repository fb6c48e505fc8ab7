"""Ending runs of graphs from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from foveate.engines.errors import CancelledError


class Interrupt:
    """Something that one thread does and another may end. Threads may share it.

    What runs inside of `with interrupt.covers()` ends with a `CancelledError` soon after `set`: backends stop in the middle of a
    graph where their library can, else behind it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: list[Callable[[], None]] = []
        self._is_set = False

    @property
    def is_set(self) -> bool:
        """Whether it was told to end."""
        return self._is_set

    def set(self) -> None:
        """Ends what it covers, now and from now on. Another call does nothing."""
        with self._lock:
            self._is_set = True
            stops = list(self._stops)
        for stop in stops:
            stop()

    def check(self) -> None:
        """
        Raises:
            CancelledError: it was told to end.
        """
        if self._is_set:
            raise CancelledError("the request was cancelled.")

    @contextmanager
    def covers(self) -> Iterator[None]:
        """Makes it the one that runs of graphs in this thread look at."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Has `set` call `stop` while this lasts, at once where it was called before."""
        with self._lock:
            self._stops.append(stop)
            late = self._is_set
        try:
            if late:
                stop()
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)


_current: ContextVar[Interrupt | None] = ContextVar("interrupt", default=None)


def current_interrupt() -> Interrupt | None:
    """The one that covers what this thread does."""
    return _current.get()

"""What the library calls during a build. No exception may cross it: what went wrong is kept, and raised when it is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

Progress = Callable[[str, int, int], None]
"""Told the phase, and how many of its steps are done."""


def make_monitor(trt: Any, progress: Progress) -> Any:
    """Passes the steps of a build on. `interrupt()`, or a KeyboardInterrupt of `progress`, ends it at its next step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def interrupt(self) -> None:
            self.interrupted = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            except KeyboardInterrupt:
                self.interrupt()
            return not self.interrupted

    return Monitor()


def make_writer(trt: Any, file: IO[bytes]) -> Any:
    """Writes the engine into a file; `error` is why that failed."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()


@contextmanager
def held_interrupts(monitor: Any) -> Iterator[None]:
    """Has an interrupt stop the build, in place of raising in whatever the library calls just then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, lambda *_: monitor.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

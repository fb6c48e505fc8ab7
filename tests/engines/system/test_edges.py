"""What the machine refuses is one line, and a signal leaves nothing half-made."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from foveate.engines import BackendError, DataError, ExportError, FoveateError, MachineError
from foveate.engines.system.edges import ended_by_signals, translate, translated


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), MachineError, "there is not enough memory. Use smaller"),
        (MemoryError("Unable to allocate 17.0 GiB for\nan array"), MachineError, "(Unable to allocate 17.0 GiB for an array)."),
        (RuntimeError("Allocator: can't allocate memory: you tried"), MachineError, "not enough memory (can't allocate"),
        (RecursionError(), DataError, "nested too deeply"),
        (OSError(errno.ENOSPC, "No space left on device"), MachineError, "output can't be written: No space left on device."),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), MachineError, "'a/b' can't be read or written: Read-only file"),
    ],
)  # fmt: skip
def test_what_is_known(error: Exception, kind: type[FoveateError], message: str) -> None:
    with pytest.raises(kind) as caught, translated():
        raise error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("a bug"), BrokenPipeError(), OSError("without a number"), BackendError("ours")])
def test_the_rest_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


def test_the_class_of_what_is_nested() -> None:
    assert type(translate(RecursionError(), ExportError)) is ExportError


SLEEPER = """
import signal, sys, time
from foveate.engines.system.edges import ended_by_signals
if sys.argv[1:]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    with ended_by_signals():
        print("sleeps", flush=True)
        time.sleep(float(*sys.argv[1:] or [60]))
finally:
    print("clears up", flush=True)
"""


def sleeper(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "sleeps\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_as_an_exception_does(number: signal.Signals) -> None:
    with sleeper() as process:
        process.send_signal(number)
        assert process.communicate()[0] == "clears up\n"
        assert process.returncode == 128 + number


def test_a_signal_that_is_ignored_stays_so() -> None:
    with sleeper("1") as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate()[0] == "clears up\n"
        assert process.returncode == 0


def test_handlers_of_others_stay() -> None:
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)

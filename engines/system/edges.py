"""What is done at the edges of a call or a command, where an exception would be a traceback and a signal would leave halves."""

from __future__ import annotations

import errno
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from foveate.engines.errors import DataError, FoveateError, MachineError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = re.compile("can't allocate memory|not enough memory|failed to allocate memory|bad_alloc", re.IGNORECASE)
"""What torch and ONNX Runtime say, each with a class of its own for everything."""


def translate(error: Exception, nested: type[FoveateError] = DataError) -> FoveateError | None:
    """foveate's error for what the machine refuses, or `nested` for a file that is nested without end; None for a bug."""
    if isinstance(error, MemoryError) or _is_about_memory(error):
        return MachineError(
            f"there is not enough memory{_detail(error)}. Use smaller or fewer images, a smaller model, or a machine with more."
        )
    if isinstance(error, RecursionError):
        return nested("a file or a message is nested too deeply to be read. Use one that is not.")
    if isinstance(error, BrokenPipeError) or not isinstance(error, OSError) or error.errno is None:
        return None
    where = f"'{error.filename}'" if error.filename is not None else "a file or the output"
    if error.errno in _FULL:
        return MachineError(f"{where} can't be written: {error.strerror}. Free some space or choose another place.")
    return MachineError(f"{where} can't be read or written: {error.strerror}. Look at its rights, or choose another place.")


@contextmanager
def translated(nested: type[FoveateError] = DataError) -> Iterator[None]:
    """Around a call, or as its decorator: what `translate` knows is raised as that."""
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:
        known = translate(error, nested)
        if known is None:
            raise
        raise known from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Around a command: SIGTERM and SIGHUP end it as an exception does, so that what is half-made goes.

    Where they are ignored, as SIGHUP by nohup, they stay so. Only the main thread can do that; others change nothing.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def end(number: int, frame: FrameType | None) -> None:
        for other in taken:  # a second one must not cut the clearing up short
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _is_about_memory(error: Exception) -> bool:
    """Whether a library found no memory."""
    return not isinstance(error, OSError) and _NO_MEMORY.search(str(error)) is not None


def _detail(error: Exception) -> str:
    """What a library says of it, from there on where it says which kernel and source file it was in before."""
    text = " ".join(str(error).split())
    found = _NO_MEMORY.search(text)
    return f" ({text[found.start() if found else 0 :][:200]})" if text else ""

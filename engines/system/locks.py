"""Lock files: the system lets go of a lock when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""Of an OSError: the system or the file system has no locks."""


def acquire_lock(path: Path, wait: bool, on_wait: Callable[[], None] | None = None) -> ExitStack:
    """Takes a lock; leaving the stack that comes back removes the file and lets go.

    Args:
        path: the lock's file, made if it is not there.
        wait: for another process or thread that has it.
        on_wait: called once before waiting.

    Raises:
        OSError: BlockingIOError where another one has it and `wait` is off; any other where there can be no lock.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "this system has no file locks (fcntl), build on Linux or in WSL")
    while True:
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                stack.callback(path.unlink, missing_ok=True)
                return stack.pop_all()


def is_locked(path: Path) -> bool:
    """Whether someone has the lock of this file."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the file: the one before removed it, and the next ones lock another."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    return False

"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foveate.engines.system.locks import NO_LOCKS, acquire_lock


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in place of an older one, atomically, and has the disk hold it. What killed processes left beside it goes.

    Raises:
        OSError: it can't be written, and what was there stays; `filename` says which file it is.
    """
    try:
        _clear_leftovers(path)
        with _temporary(path) as temporary:
            temporary.write_bytes(content)
            flush_file(temporary)
            os.replace(temporary, path)
    except OSError as error:
        name_file(error, path)
        raise


def name_file(error: OSError, path: Path) -> None:
    """Notes which file an error of the system is about, where it does not say: a full disk names none."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)


def flush_file(path: Path) -> None:
    """Has the disk hold what was written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file of its own beside a path: locked, so that it is known to be in use, and gone at the end if it is still there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        lock = acquire_lock(temporary, wait=True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    else:
        with lock:
            yield temporary


def _clear_leftovers(path: Path) -> None:
    """Removes files of `_temporary` that no one has the lock of."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for name in os.listdir(path.parent):
        if ours.fullmatch(name):
            with suppress(OSError), acquire_lock(path.with_name(name), wait=False):
                pass  # letting go removes it

"""Renames that Python's `os` has not: Linux's renameat2."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What kernels and file systems without these renames say."""


def exchange(first: Path, second: Path) -> bool:
    """Has two paths change places in one step; False, and nothing done, where the system can't.

    Raises:
        OSError: one of them is not there, is busy or can't be written.
    """
    return _rename(first, second, _EXCHANGE)


def move_to_free(source: Path, target: Path) -> None:
    """Renames a folder to a path where nothing is.

    Raises:
        FileExistsError: something is there; where the system can't say, only if it is no empty folder.
        OSError: the folder around it can't be written.
    """
    if _rename(source, target, _NOREPLACE):
        return
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise


def _rename(source: Path, target: Path, flag: int) -> bool:
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@cache
def _renameat2() -> Any:
    """The C library's function; None where it has none (before glibc 2.28, or another system)."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function

"""A folder that another process may replace while it is read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from foveate.engines.errors import FoveateError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_ATTEMPTS = 10


def steadily(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Of a function that reads the folder `path`: where another folder takes its place meanwhile, it is called anew, so that
    what it gives, or raises, is of one folder."""
    signature = inspect.signature(read)

    @wraps(read)
    def reread(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        path = Path(signature.bind(*args, **kwargs).arguments["path"])
        for last in reversed(range(_ATTEMPTS)):
            before = _identity(path)
            try:
                found = read(*args, **kwargs)
            except (FoveateError, OSError):
                if not last or _identity(path) == before:
                    raise
            else:
                if not last or _identity(path) == before:
                    return found
        raise AssertionError("the last attempt ends the loop")

    return reread


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a folder from the one before, whose number it may have; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns

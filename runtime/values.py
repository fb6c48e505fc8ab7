"""Values that callers give, checked, and made plain: numpy's numbers become Python's, other collections tuples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from foveate.engines import RequestError
from foveate.engines.errors import shown

LEAVE_OUT = "Leave it out for the default."


def unusable(name: str, value: object, expected: str, remedy: str = LEAVE_OUT) -> RequestError:
    """The error for the value of a field."""
    return RequestError(f"{name} is {shown(value)}, expected {expected}. {remedy}", options=(name,))


def number(name: str, value: object, fits: Callable[[float], bool], expected: str, remedy: str = LEAVE_OUT) -> float:
    """A finite number; raises RequestError where it is none or does not fit."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and fits(found):
            return found
    raise unusable(name, value, f"a number {expected}", remedy)


def share(name: str, value: object, remedy: str = LEAVE_OUT) -> float:
    """A number above 0 and up to 1, or RequestError."""
    return number(name, value, lambda found: 0 < found <= 1, "above 0 and up to 1", remedy)


def whole(name: str, value: object, least: int, remedy: str = LEAVE_OUT) -> int:
    """A whole number of at least `least`, or RequestError."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise unusable(name, value, f"a whole number of at least {least}", remedy)
    return int(value)


def flag(name: str, value: object) -> bool:
    """True or False, or RequestError."""
    if not isinstance(value, bool | np.bool_):
        raise unusable(name, value, "True or False")
    return bool(value)


def items(name: str, value: object, expected: str, remedy: str = LEAVE_OUT) -> tuple[Any, ...]:
    """What a collection of any kind holds, in its order; raises RequestError for what is none, and for text."""
    single = isinstance(value, str | bytes | bytearray | memoryview | Mapping)
    if single or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise unusable(name, value, expected, remedy)
    return tuple(value)


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """A list of token ids, or RequestError."""
    return tuple(whole(f"a token of {name}", token, 0) for token in items(name, value, "a list of token ids"))


def settle(owner: object, **values: object) -> None:
    """Sets fields of a frozen dataclass while it is made."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)

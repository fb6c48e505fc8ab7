"""Text that knows who wrote it: a chat template works on it as on any text, and every character keeps its origin.

A template is a program. It may cut what callers wrote, compare it, quote it as JSON or join it with its own text, and what a
caller wrote must still be data in the end. So callers' texts reach it as `Authored`, a string with an origin for each
character, and each operation that makes a new string of them (`run`) finds out what of the new one is whose: it is repeated
with one stand-in character for each piece of callers' text. Where the stand-ins, replaced by what they stand for, give the same
string, every origin is known. Where they do not, because the operation looked into the text (`upper`, `tojson` of a quote),
all of it counts as the callers', but for control tokens that the template certainly wrote; `Origin.sure` is false where that
can't be told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, SupportsIndex

from jinja2.runtime import LoopContext

_FIRST_STAND_IN = 0x100000  # a plane that is left to private use


@dataclass(frozen=True)
class Origin:
    """Where a character comes from.

    Attributes:
        texts: numbers of the callers' texts that it was made of; none where the template wrote it.
        sure: nothing of it may be the template's.
        listed: it stands in a list of parts that was written as if it were a text, which no template means to do.
    """

    texts: frozenset[int] = frozenset()
    sure: bool = True
    listed: bool = False


TEMPLATE = Origin()


class Authored(str):
    """A string with an origin for each character; see the module.

    Attributes:
        origins: `[characters]`.
    """

    origins: tuple[Origin, ...]

    def __new__(cls, text: str, origins: Iterable[Origin]) -> Authored:
        made = super().__new__(cls, text)
        made.origins = tuple(origins)
        return made

    @classmethod
    def of(cls, text: str, origin: Origin) -> Authored:
        """A text of one origin."""
        return cls(text, (origin,) * len(text))

    def as_listed(self) -> Authored:
        """The same text with `listed` origins."""
        return Authored(plain(self), [replace(origin, listed=True) if origin.texts else origin for origin in self.origins])

    def __str__(self) -> str:
        return self  # jinja writes `str(value)`, which would forget the origins

    def __getitem__(self, index: SupportsIndex | slice) -> Authored:
        origins = self.origins[index]
        return Authored(str.__getitem__(self, index), origins if isinstance(origins, tuple) else (origins,))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


def plain(text: str) -> str:
    """The same text without origins."""
    return str.__str__(text)


def without_origins(value: Any) -> Any:
    """A value of lists, dicts and texts with plain texts in it."""
    return _rebuild(value, plain)


def join(texts: Iterable[str]) -> str:
    """`"".join`, with origins where any text has them."""
    texts = list(texts)
    joined = "".join(map(plain, texts))
    if not any(isinstance(text, Authored) for text in texts):
        return joined
    return Authored(joined, [origin for text in texts for origin in origins_of(text)])


def origins_of(text: str) -> tuple[Origin, ...]:
    """`[characters]`, of any string."""
    return text.origins if isinstance(text, Authored) else (TEMPLATE,) * len(text)


def run(
    function: Callable[..., Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    control: re.Pattern[str],
    *,
    lists: bool = False,
) -> Any:
    """`function(*args, **kwargs)`; where it makes a string, that knows its origins.

    Args:
        function: makes a string, or gives something that it was given; it may be called twice.
        args: its arguments, with callers' texts in them at any depth.
        kwargs: likewise.
        control: finds control tokens; its group 1 is the token.
        lists: it may make a list or tuple of strings too.
    """
    arguments = [list(value) if _is_used_up(value) else value for value in args]
    result = function(*arguments, **kwargs)
    if isinstance(result, Authored) or not isinstance(result, str | list | tuple if lists else str):
        return result
    stand_ins = _StandIns(control)
    hidden_args, hidden_kwargs = stand_ins.hide(arguments), stand_ins.hide(dict(kwargs))
    if not stand_ins.pieces:
        return result
    try:
        seen = function(*hidden_args, **hidden_kwargs)
    except Exception:  # whatever the operation makes of such a text; the result is known
        seen = None
    return stand_ins.credit(result, seen)


class _StandIns:
    """One character for each piece of callers' text. Whitespace around a piece stays, so that trimming works on both."""

    def __init__(self, control: re.Pattern[str]) -> None:
        self.pieces: dict[str, Authored] = {}
        self._control = control
        self._template_has_control = False
        self._stands_already = False

    def hide(self, value: Any) -> Any:
        """The value with a stand-in for every piece."""
        return _rebuild(value, self._hide_text)

    def _hide_text(self, text: str) -> str:
        if not isinstance(text, Authored):
            hidden = text
            self._stands_already |= any(ord(character) >= _FIRST_STAND_IN for character in text)
        else:
            start, hidden = 0, ""
            for origin, group in groupby(text.origins):
                end = start + len(list(group))
                hidden += plain(text[start:end]) if origin == TEMPLATE else self._stand_in(text[start:end])
                start = end
        self._template_has_control |= bool(self._control.search(hidden))
        return hidden

    def _stand_in(self, piece: Authored) -> str:
        core = plain(piece).strip()
        if not core:
            return plain(piece)
        start = plain(piece).index(core)
        stand_in = chr(_FIRST_STAND_IN + len(self.pieces))
        self.pieces[stand_in] = piece[start : start + len(core)]
        return plain(piece)[:start] + stand_in + plain(piece)[start + len(core) :]

    def credit(self, result: Any, seen: Any) -> Any:
        """The result with origins, by what the operation made of the stand-ins."""
        if isinstance(result, str):
            known = self._restore(seen) if isinstance(seen, str) and not self._stands_already else None
            return known if known == result and known is not None else self._blur(result, seen)
        same_form = isinstance(seen, list | tuple) and len(seen) == len(result)
        return [self.credit(item, part) for item, part in zip(result, seen if same_form else [None] * len(result), strict=True)]

    def _restore(self, seen: str) -> str:
        return join(self.pieces.get(character, character) for character in seen)

    def _blur(self, result: str, seen: Any) -> Authored:
        """All of it the callers', but for control tokens that the template wrote."""
        texts = frozenset[int]().union(*(origin.texts for piece in self.pieces.values() for origin in piece.origins))
        found = [(match.start(), match[1]) for match in self._control.finditer(result)]
        typed = any(self._control.search(piece) for piece in self.pieces.values())
        expected = self._control.findall(seen) if isinstance(seen, str) else []
        if not typed and found and [token for _, token in found] == expected:
            origins = [Origin(texts)] * len(result)
            for start, token in found:
                origins[start : start + len(token)] = [TEMPLATE] * len(token)
            return Authored(result, origins)
        sure = not self._template_has_control and all(origin.sure for piece in self.pieces.values() for origin in piece.origins)
        return Authored.of(result, Origin(texts, sure))


def _rebuild(value: Any, change: Callable[[str], str]) -> Any:
    """A value with changed texts; what is no text, list or dict stays the object that it is."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        items = [_rebuild(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {_rebuild(key, change): _rebuild(item, change) for key, item in value.items()}
    return value


def _is_used_up(value: Any) -> bool:
    """Whether a value can be walked over only once."""
    return isinstance(value, Iterator) and not isinstance(value, LoopContext)

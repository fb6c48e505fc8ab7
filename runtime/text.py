"""Tokens to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes a growing list of tokens; what it has given out never changes. Special tokens are skipped.

    `DecodeStream` of tokenizers does not give out what is left at the end, and fails at bytes that are no UTF-8 where the
    vocabulary falls back to bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens given out already: some decoders join words by their neighbours
        self._pending: list[int] = []
        self._given = 0  # characters of context + pending that were given out

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is incomplete."""
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        # Bytes that are not a whole character yet decode to U+FFFD at the end, which later bytes may change: one for all of
        # them, or one for each where the vocabulary falls back to bytes.
        complete = text.rstrip(_REPLACEMENT)
        new = complete[self._given :]
        self._given = max(self._given, len(complete))
        if new and complete == text:
            self._context, self._pending = self._pending, []
            self._given = len(self._decode(self._context))
        return new

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        text = self._decode(self._context + self._pending)
        new = text[self._given :]
        self._given = len(text)
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class StopStrings:
    """Cuts a stream of text at the first stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is certain to stand before any stop string; its possible beginning is held back."""
        if not self._stop:
            return text
        held = self._held + text
        hits = [position for position in map(held.find, self._stop) if position >= 0]
        self.found = bool(hits)
        keep = min(hits) if hits else len(held) - max(_overlap(held, stop) for stop in self._stop)
        self._held = "" if hits else held[keep:]
        return held[:keep]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """Tokens in, text out: whole characters, up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """A stop string was met; nothing may be pushed any more."""
        return self._stop.found

    def push(self, token_id: int) -> str:
        """New text, possibly empty."""
        return self._stop.push(self._detokenizer.push(token_id))

    def flush(self) -> str:
        """The rest, at the end of the answer."""
        rest = self._stop.push(self._detokenizer.flush())
        return rest if self.stopped else rest + self._stop.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and does not complete it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)

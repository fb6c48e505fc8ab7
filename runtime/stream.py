"""Answers while they grow."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from foveate.engines import MachineError, RequestError
from foveate.runtime.sequence import TokenSequence
from foveate.runtime.stages import Timings
from foveate.runtime.types import Answer, Chunk


class Stream:
    """The answers of a batch: iterating draws tokens, `answers` draws the rest. For one thread at a time."""

    def __init__(self, sequences: Sequence[TokenSequence], chunks: Iterator[Chunk], kv_bytes: int) -> None:
        self._sequences = sequences
        self._chunks = chunks
        self._kv_bytes = kv_bytes
        self._owner = threading.Lock()
        self._failure: Exception | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        """The next token.

        Raises:
            RequestError: another thread is drawing one, or no token is allowed any more.
            BackendError: a graph failed; whatever is asked of the stream afterwards fails likewise.
            MachineError: there is not enough memory.
        """
        if not self._owner.acquire(blocking=False):
            raise RequestError("another thread draws from this stream. Read it in one thread, or ask for one stream for each.")
        try:
            return self._draw()
        finally:
            self._owner.release()

    def answers(self) -> list[Answer]:
        """The finished answers, one per request; draws what was not drawn yet, and raises what that raises."""
        deque(self, maxlen=0)
        return [finished(sequence, self._kv_bytes) for sequence in self._sequences]

    def _draw(self) -> Chunk:
        if self._failure is not None:  # the generator is over, and what was drawn is no answer
            raise self._failure
        try:
            with enough_memory():
                return next(self._chunks)
        except StopIteration:
            raise
        except Exception as error:
            self._failure = error
            raise



def finished(sequence: TokenSequence, kv_bytes: int) -> Answer:
    """The answer that a sequence has grown to.

    Args:
        sequence: which is done.
        kv_bytes: see `Answer`.
    """
    return Answer(
        text="".join(sequence.pieces),
        tokens=tuple(sequence.tokens),
        finish_reason=sequence.finish_reason or "",
        timings=Timings(**sequence.stage_ms, decode_ms=tuple(sequence.decode_ms)),
        kv_bytes=kv_bytes,
        prompt_tokens=sequence.prompt_tokens,
        **sequence.facts,
    )


@contextmanager
def enough_memory() -> Iterator[None]:
    """Makes the interpreter's MemoryError one of ours.

    Raises:
        MachineError: there was not enough.
    """
    try:
        yield
    except MemoryError as error:
        fact = f"there is not enough memory: {' '.join(str(error).split()) or 'the machine gives no more'}"
        raise MachineError(
            f"{fact.rstrip('.')}. Use fewer or smaller images, keep fewer visual tokens, or lower max_new_tokens."
        ) from error

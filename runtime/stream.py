"""Answers while they grow."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from foveate.engines import MachineError, RequestError
from foveate.runtime.batch import Pruned
from foveate.runtime.decode import Row
from foveate.runtime.select import Selection
from foveate.runtime.stages import Timings
from foveate.runtime.types import Answer, Chunk, Prepared, Request


@dataclass(frozen=True, eq=False)
class Job:
    """A request that is ready for the text model; `stage_ms` has what its own stages took, `predicted_ttft_ms` what was
    expected where its budget is in milliseconds."""

    request: Request
    prompt: Pruned
    selection: Selection
    prepared: Prepared
    max_new_tokens: int
    stage_ms: Mapping[str, float]
    predicted_ttft_ms: float | None = None

    @property
    def cache_tokens(self) -> int:
        return len(self.prompt.input_ids) + self.max_new_tokens

    def facts(self) -> dict[str, Any]:
        """What its answer says about it, without the images and patches, which may be larger than the KV cache: the pictures
        stay where `Answer.explain` can draw something on them."""
        pictures, selection = self.prepared.pictures, self.selection
        explained = selection.scores is not None or len(selection.keep_indices) < selection.num_visual_tokens
        return {
            "selection": selection,
            "grids": self.prepared.grids,
            "prompt_tokens": len(self.prompt.input_ids),
            "predicted_ttft_ms": self.predicted_ttft_ms,
            "frame_seconds": tuple(picture.seconds for picture in pictures if picture.seconds is not None),
            "resized": self.prepared.resized,
            "pictures": pictures if explained else (),
        }


class Stream:
    """The answers of a batch: iterating draws tokens, `answers` draws the rest. For one thread at a time."""

    def __init__(
        self, jobs: Sequence[Job], rows: Sequence[Row], chunks: Iterator[Chunk], stage_ms: Mapping[str, float], kv_bytes: int
    ) -> None:
        self._facts = [job.facts() for job in jobs]
        self._stage_ms = [{**job.stage_ms, **stage_ms} for job in jobs]
        self._rows = rows
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
        return [self._answer(index, row) for index, row in enumerate(self._rows)]

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

    def _answer(self, index: int, row: Row) -> Answer:
        return Answer(
            text="".join(row.pieces),
            tokens=tuple(row.tokens),
            finish_reason=row.finish_reason or "",
            timings=Timings(**self._stage_ms[index], decode_ms=tuple(row.decode_ms)),
            kv_bytes=self._kv_bytes,
            **self._facts[index],
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

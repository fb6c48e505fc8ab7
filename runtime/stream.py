"""Answers while they grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from foveate.runtime.batch import Pruned
from foveate.runtime.decode import Row
from foveate.runtime.select import Selection
from foveate.runtime.types import Answer, Chunk, Prepared, Request, Timings


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


class Stream:
    """The answers of a batch: iterating draws tokens, `answers` draws the rest."""

    def __init__(
        self, jobs: Sequence[Job], rows: Sequence[Row], chunks: Iterator[Chunk], stage_ms: Mapping[str, float], kv_bytes: int
    ) -> None:
        self._jobs = jobs
        self._rows = rows
        self._chunks = chunks
        self._stage_ms = stage_ms
        self._kv_bytes = kv_bytes

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def answers(self) -> list[Answer]:
        """The finished answers, one per request; draws what was not drawn yet."""
        deque(self._chunks, maxlen=0)
        return [self._answer(job, row) for job, row in zip(self._jobs, self._rows, strict=True)]

    def _answer(self, job: Job, row: Row) -> Answer:
        return Answer(
            text="".join(row.pieces),
            tokens=tuple(row.tokens),
            finish_reason=row.finish_reason or "",
            selection=job.selection,
            grids=job.prepared.grids,
            prompt_tokens=len(job.prompt.input_ids),
            timings=Timings(**job.stage_ms, **self._stage_ms, decode_ms=tuple(row.decode_ms)),
            kv_bytes=self._kv_bytes,
            pictures=job.prepared.pictures,
            predicted_ttft_ms=job.predicted_ttft_ms,
            resized=job.prepared.resized,
        )


class Stopwatch:
    """Milliseconds per stage: `with stopwatch("vision_ms"): ...`."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.stage_ms[stage] = 1e3 * (perf_counter() - start)

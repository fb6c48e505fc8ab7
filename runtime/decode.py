"""The decode loop: from the logits of the prefill to finished answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from foveate.runtime.kv_cache import KVCache
from foveate.runtime.logits import LogitsProcessor
from foveate.runtime.sampling import Sampler, greedy
from foveate.runtime.text import TextStream
from foveate.runtime.text_model import NextTokens, TextModel
from foveate.runtime.types import Chunk


@dataclass
class Row:
    """One answer of a batch while it grows.

    Attributes:
        index: its place in the batch.
        sampler: draws its tokens; None takes the likeliest.
        stream: turns them into text.
        eos_token_ids: tokens that end the answer.
        max_new_tokens: most tokens that it may draw.
        processor: changes the logits first; None leaves them as they are.
        stop_token_ids: special tokens that were given as stop strings.
        finish_reason: None while it goes on.
    """

    index: int
    sampler: Sampler | None
    stream: TextStream
    eos_token_ids: Sequence[int]
    max_new_tokens: int
    processor: LogitsProcessor | None = None
    stop_token_ids: Sequence[int] = ()
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def draw(self, following: NextTokens) -> Chunk:
        """Draws the next token and says what it adds."""
        token = self._choose(following)
        self.tokens.append(token)
        ended, stopped = token in self.eos_token_ids, token in self.stop_token_ids
        text = "" if ended or stopped else self.stream.push(token)
        if not self.stream.stopped and (ended or stopped or len(self.tokens) == self.max_new_tokens):
            text += self.stream.flush()
            self.finish_reason = "eos" if ended else "stop" if stopped else "length"
        if self.stream.stopped:
            self.finish_reason = "stop"
        self.pieces.append(text)
        return Chunk(text, token, self.finish_reason, self.index)

    def _choose(self, following: NextTokens) -> int:
        if self.processor is None and self.sampler is None:
            return following.likeliest_token(self.index)  # without the logits, which may lie on a GPU
        logits = following.logits[self.index]
        if self.processor is not None:
            logits = self.processor(self.tokens, logits)
        return (self.sampler or greedy)(logits)


def decode(
    model: TextModel, rows: Sequence[Row], positions: np.ndarray, following: NextTokens, cache: KVCache
) -> Iterator[Chunk]:
    """Draws tokens until every row is finished.

    A finished row stays in the batch and stands still: it writes one slot of its cache again and again, unread.

    Args:
        model: the text model.
        rows: one per row of the batch; they grow as chunks are given out.
        positions: `[batch]` int64, position of the first generated token; moved on in place.
        following: what comes after the prompts.
        cache: holds the prompts.
    """
    tokens = np.zeros(len(rows), np.int64)
    active = list(rows)
    while True:
        for row in active:
            chunk = row.draw(following)
            tokens[row.index] = chunk.token_id
            yield chunk
        active = [row for row in active if row.finish_reason is None]
        if not active:
            return
        start = perf_counter()
        following = model.step(tokens, positions, cache)
        moving = [row.index for row in active]
        positions[moving] += 1
        cache.lengths[moving] += 1
        step_ms = 1e3 * (perf_counter() - start)
        for row in active:
            row.decode_ms.append(step_ms)

"""The decode loop: from the logits of the prefill to finished answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter

import numpy as np

from foveate.engines import KVCache, NextTokens
from foveate.runtime.sequence import TokenSequence
from foveate.runtime.text_model import TextModel
from foveate.runtime.types import Chunk


def decode(model: TextModel, cache: KVCache, sequences: Sequence[TokenSequence], following: NextTokens) -> Iterator[Chunk]:
    """Draws tokens until every sequence is finished. Finished ones stand still in their slots.

    Args:
        model: the text model.
        cache: holds the prompts, one in each slot.
        sequences: one per slot; they grow as chunks are given out.
        following: what comes after the prompts.
    """
    active = dict(enumerate(sequences))
    while True:
        for slot, sequence in active.items():
            yield sequence.draw(following, slot)
        active = {slot: sequence for slot, sequence in active.items() if sequence.finish_reason is None}
        if not active:
            return
        following = decode_step(model, cache, active)


def decode_step(model: TextModel, cache: KVCache, active: Mapping[int, TokenSequence]) -> NextTokens:
    """Feeds the token that each sequence drew last; what comes after it.

    Args:
        model: the text model.
        cache: of the sequences.
        active: the sequences that go on, by slot; the other slots stand still.
    """
    start = perf_counter()
    tokens, positions = np.zeros((2, cache.slots), np.int64)
    for slot, sequence in active.items():
        tokens[slot], positions[slot] = sequence.tokens[-1], sequence.next_position
    following = model.step(cache, tokens, positions, list(active))
    step_ms = 1e3 * (perf_counter() - start)
    for sequence in active.values():
        sequence.next_position += 1
        sequence.decode_ms.append(step_ms)
    return following

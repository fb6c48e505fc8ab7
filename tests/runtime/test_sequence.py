"""Growing answers on the slots of one cache: they join and leave at any step."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.engines import KVCache
from foveate.runtime import Pipeline, Request, Sampling
from foveate.runtime.batch import pad
from foveate.runtime.decode import decode_step
from foveate.runtime.sequence import TokenSequence


def join(pipe: Pipeline, cache: KVCache, slot: int, sequence: TokenSequence) -> None:
    """Reads the prompt into a slot and draws the first token, while the other slots hold theirs."""
    model, own = pipe.text_model, cache[slot : slot + 1]
    own.clear()
    batch = pad([sequence.take_prompt()], pipe.manifest.prompt.pad_token_id)
    sequence.draw(model.prefill(own, model.embed(batch), batch), 0)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_sequences_join_and_leave(slots: int, pipe: Pipeline) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 112, 140, 3), dtype=np.uint8)
    samplings = (Sampling(), Sampling(temperature=1.0, seed=3))
    requests = [
        Request.ask(
            "What?" * (number + 1), image, keep=0.5, max_new_tokens=2 + 2 * (number % 3), sampling=samplings[number % 2]
        )
        for number, image in enumerate(images)
    ]
    expected = [pipe.generate(request).tokens for request in requests]
    sequences = [pipe._admit(request, None) for request in requests]
    cache = pipe.text_model.decoder.new_cache(slots, max(sequence.cache_tokens for sequence in sequences))
    waiting, active = list(sequences), dict[int, TokenSequence]()
    while waiting or active:
        for slot in {*range(slots)} - active.keys():
            if waiting:
                active[slot] = waiting.pop(0)
                join(pipe, cache, slot, active[slot])
        active = {slot: sequence for slot, sequence in active.items() if sequence.finish_reason is None}
        if active:
            following = decode_step(pipe.text_model, cache, active)
            for slot, sequence in active.items():
                sequence.draw(following, slot)
        active = {slot: sequence for slot, sequence in active.items() if sequence.finish_reason is None}
    assert [tuple(sequence.tokens) for sequence in sequences] == expected
    assert [len(sequence.decode_ms) for sequence in sequences] == [len(tokens) - 1 for tokens in expected]

"""What every driver of a decoder can do, wherever its sequences lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from foveate.engines.backends.memory import Array
from foveate.engines.errors import BackendError

NAN_LOGITS = "the decoder gave NaN logits. Export or build the bundle again at a higher precision."


@dataclass(frozen=True, eq=False)
class NextTokens:
    """What the decoder says about the next token of each slot; valid until the next run of the same cache.

    Attributes:
        scores: `logits [slots, vocab_size]` float32, where the decoder left them.
        likeliest: `[slots]` int64, -1 where the logits hold NaN.
    """

    scores: Array
    likeliest: np.ndarray

    @cached_property
    def logits(self) -> np.ndarray:
        """`[slots, vocab_size]` float32 on the host, brought there when it is first asked for."""
        return np.asarray(self.scores)

    def likeliest_token(self, slot: int) -> int:
        """The token that greedy decoding takes.

        Raises:
            BackendError: the logits hold NaN.
        """
        token = int(self.likeliest[slot])
        if token < 0:
            raise BackendError(NAN_LOGITS)
        return token


class KVCache(Protocol):
    """Slots, each for the keys and values of one sequence at a time. What they lie in, only the decoder that made it knows.

    Attributes:
        step_embeds: `inputs_embeds [slots, 1, hidden_size]`, for whoever embeds the tokens of a step: at one address for all
            steps, so that a device can replay them.
    """

    step_embeds: Array

    @property
    def slots(self) -> int: ...

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit into a slot."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """`[slots]` int32, tokens that each slot holds. It can't be written: runs of the decoder and `clear` change it."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values allocated for all slots."""
        ...

    def __getitem__(self, slots: slice, /) -> KVCache:
        """Consecutive slots as a cache of their own, on the same memory. What a run says about slots from the first one on
        holds until the next run of any such cache."""
        ...

    def clear(self) -> None:
        """Empties all slots, for other sequences."""
        ...

    def shorten(self, slot: int, tokens: int) -> None:
        """Forgets what a slot holds behind its first `tokens`."""
        ...

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Puts the first `tokens` that a slot holds into another one, in place of what that holds."""
        ...

    def exchange(self, first: int, second: int) -> None:
        """Puts what two slots hold into each other's place."""
        ...


class Decoder(Protocol):
    """A decoder and its caches. Threads may share it, but not a cache.

    Attributes:
        capacity_tokens: of a slot, where the graph fixes it.
    """

    @property
    def capacity_tokens(self) -> int | None: ...

    def new_cache(self, slots: int, tokens: int) -> KVCache:
        """An empty cache, with room for `tokens` in each slot, prompt and answer."""
        ...

    def prefill(
        self, cache: KVCache, inputs_embeds: Array, position_ids: np.ndarray, lengths: np.ndarray | None = None
    ) -> NextTokens:
        """Appends tokens to what every slot of the cache holds: prompts to empty ones, or the next chunk of them.

        For some slots alone, give those: `prefill(cache[2:3], ...)`. The others stay as they are.

        Args:
            cache: of this decoder.
            inputs_embeds: `[slots, sequence, hidden_size]`, padded on the right.
            position_ids: `[position_axes, slots, sequence]` int64.
            lengths: `[slots]` int32, how many tokens of each row are real, 1 or more; None for all.

        Returns:
            What follows the last real token of each slot.

        Raises:
            BackendError: the tokens do not fit, the decoder can't take them, or the run failed.
        """
        ...

    def step(
        self, cache: KVCache, inputs_embeds: Array, position_ids: np.ndarray, moving: Sequence[int] | None = None
    ) -> NextTokens:
        """One more token for slots of the cache.

        Args:
            cache: of this decoder.
            inputs_embeds: `[slots, 1, hidden_size]`; of slots that stand still any numbers.
            position_ids: `[position_axes, slots, 1]` int64.
            moving: the slots that go on; None for all. The others keep what they hold; what is said about them means nothing.

        Raises:
            BackendError: a slot is full, or the run failed.
        """
        ...

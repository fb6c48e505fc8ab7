"""Caches in arrays that a graph updates in place: what the lowerings for ONNX graphs share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from foveate.engines.backends.decoders.protocol import KVCache, NextTokens
from foveate.engines.backends.memory import Array, Memory
from foveate.engines.backends.session import Session
from foveate.engines.errors import BackendError
from foveate.engines.format.cache import BLOCK_TOKENS, whole
from foveate.engines.format.manifest import DecoderEntry
from foveate.engines.format.names import PAST, PRESENT

_ALL = slice(None)


class ArrayCache:
    """Keys and values of every layer, `[slots, num_key_value_heads, capacity, head_dim]` each, and what else a step writes.

    Args:
        memory: where the arrays lie.
        past: keys and values by the names of the graph's inputs.
        logits: `[slots, vocab_size]` float32, which every run writes.
        step_embeds: see `KVCache`.
        held: `[slots]` int32, see `KVCache.lengths`.
        spoilt: `[slots]` bool, where a run found NaN.

    Attributes:
        past: as given.
        presents: the same arrays by the names of the graph's outputs.
        buffers: these and `logits`.
    """

    def __init__(
        self,
        memory: Memory,
        past: Mapping[str, Array],
        logits: Array,
        step_embeds: Array,
        held: np.ndarray,
        spoilt: np.ndarray,
    ) -> None:
        self.past = past
        self.presents = {name.replace(PAST, PRESENT): array for name, array in past.items()}
        self.buffers = {"logits": logits, **self.presents}
        self.step_embeds = step_embeds
        self._memory = memory
        self._held = held
        self._spoilt = spoilt
        self._lengths = held.view()
        self._lengths.flags.writeable = False

    @property
    def slots(self) -> int:
        return len(self._held)

    @cached_property
    def capacity_tokens(self) -> int:
        """See `KVCache`."""
        return next(iter(self.past.values())).shape[2]

    @property
    def lengths(self) -> np.ndarray:
        """See `KVCache`."""
        return self._lengths

    @property
    def nbytes(self) -> int:
        """See `KVCache`."""
        return sum(array.nbytes for array in self.past.values())

    def __getitem__(self, slots: slice) -> ArrayCache:
        """See `KVCache`."""
        past = {name: array[slots] for name, array in self.past.items()}
        held, logits, embeds = self._held[slots], self.buffers["logits"], self.step_embeds
        if slots.start not in (None, 0):  # a row among others may start at an address that libraries refuse to write to
            logits = self._memory.empty((len(held), logits.shape[1]), "float32")
            embeds = self._memory.empty((len(held), *embeds.shape[1:]), embeds.dtype.name)
        own = (logits[: len(held)], embeds[: len(held)])
        return ArrayCache(self._memory, past, *own, held, self._spoilt[slots])

    def clear(self) -> None:
        """See `KVCache`. What the slots held stays in memory, unread."""
        if self._spoilt.any():  # what is masked still counts in a product: 0 times NaN is NaN
            for array in self.past.values():
                self._memory.zero(array)
            self._spoilt[:] = False
        self._held[:] = 0

    def shorten(self, slot: int, tokens: int) -> None:
        """See `KVCache`. What lies behind stays in memory, unread."""
        self._held[slot] = min(tokens, int(self._held[slot]))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """See `KVCache`."""
        for array in self.past.values():
            self._memory.exchange_rows(array, source, target, (tokens, 0))
        self._held[target] = tokens
        self._spoilt[target] |= self._spoilt[source]

    def exchange(self, first: int, second: int) -> None:
        """See `KVCache`."""
        held = (int(self._held[first]), int(self._held[second]))
        if first == second or held == (0, 0):
            return
        for array in self.past.values():
            self._memory.exchange_rows(array, first, second, held)
        self._held[[first, second]] = held[::-1]
        self._spoilt[[first, second]] = self._spoilt[[first, second]].any()  # what was behind may lie in either now

    def total_with(self, tokens: int) -> int:
        """Tokens of the fullest slot once a run has appended so many.

        Raises:
            BackendError: they do not fit; the graph would write beyond the slot.
        """
        held = int(self._held.max())
        if held + tokens > self.capacity_tokens:
            raise BackendError(
                f"a slot of the KV cache holds {held} tokens, {tokens} more do not fit into {self.capacity_tokens}. "
                "Make the cache for more tokens, or clear the slot."
            )
        return held + tokens

    def grow(self, slots: slice | Sequence[int], tokens: np.ndarray | int, following: NextTokens) -> None:
        """Notes what a run left behind."""
        self._held[slots] += tokens
        np.logical_or(self._spoilt, following.likeliest < 0, out=self._spoilt)


class ArrayDecoder(ABC):
    """A decoder graph whose cache is an `ArrayCache`; see `Decoder`.

    Args:
        session: the graph.
        entry: its sizes.
    """

    def __init__(self, session: Session, entry: DecoderEntry) -> None:
        self._session = session
        self._entry = entry
        self._specs = {tensor.name: tensor for tensor in session.spec.inputs}
        self._cached = [name for name in self._specs if name.startswith(PAST)]

    @property
    def capacity_tokens(self) -> int | None:
        """See `Decoder`."""
        capacity = self._specs[self._cached[0]].shape[2]
        return capacity if isinstance(capacity, int) else None

    def new_cache(self, slots: int, tokens: int) -> ArrayCache:
        """See `Decoder`."""
        memory, entry = self._session.memory, self._entry
        if tokens > (self.capacity_tokens or tokens):
            raise BackendError(
                f"graph '{self._session.spec.name}' has {self.capacity_tokens} tokens of KV cache a slot, {tokens} are asked "
                "for. Build its engine for longer prompts or answers."
            )
        capacity = self.capacity_tokens or whole(tokens, BLOCK_TOKENS)
        shape = (slots, entry.num_key_value_heads, capacity, entry.head_dim)
        # Zeros, because what is masked still counts in a product: 0 times whatever lies in fresh memory may be NaN.
        past = {name: memory.zeros(shape, self._specs[name].dtype) for name in self._cached}
        logits = memory.empty((slots, entry.vocab_size), "float32")
        step_embeds = memory.empty((slots, 1, entry.hidden_size), self._specs["inputs_embeds"].dtype)
        return ArrayCache(memory, past, logits, step_embeds, np.zeros(slots, np.int32), np.zeros(slots, bool))

    def prefill(
        self, cache: KVCache, inputs_embeds: Array, position_ids: np.ndarray, lengths: np.ndarray | None = None
    ) -> NextTokens:
        """See `Decoder`."""
        own, sequence = _own(cache), inputs_embeds.shape[1]
        total = own.total_with(sequence)
        lengths = np.full(own.slots, sequence, np.int32) if lengths is None else lengths
        following = self._append(own, inputs_embeds, position_ids, lengths - np.int32(1), total)
        own.grow(_ALL, lengths, following)
        return following

    def step(
        self, cache: KVCache, inputs_embeds: Array, position_ids: np.ndarray, moving: Sequence[int] | None = None
    ) -> NextTokens:
        """See `Decoder`. Behind what a standing slot holds something is written too, unread: it may not be full either."""
        own = _own(cache)
        total = own.total_with(1)
        following = self._append(own, inputs_embeds, position_ids, np.zeros(own.slots, np.int32), total)
        own.grow(_ALL if moving is None else moving, 1, following)
        return following

    @abstractmethod
    def _append(
        self, cache: ArrayCache, inputs_embeds: Array, position_ids: np.ndarray, last: np.ndarray, total: int
    ) -> NextTokens:
        """Runs the graph.

        Args:
            cache: that the tokens go to, behind what it holds.
            inputs_embeds: `[slots, sequence, hidden_size]`.
            position_ids: `[position_axes, slots, sequence]` int64.
            last: `[slots]` int32, index of the last real token of each row.
            total: tokens of the fullest slot with all of `sequence`.
        """
        ...

    def _run(
        self,
        cache: ArrayCache,
        inputs_embeds: Array,
        position_ids: np.ndarray,
        last: np.ndarray,
        places: Mapping[str, np.ndarray],
    ) -> NextTokens:
        """One run of the graph; `places` says where in the cache the tokens go."""
        feeds = {
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "last_indices": last.astype(np.int64),
        }
        outputs = self._session.run({**feeds, **places, **cache.past}, cache.buffers)
        return NextTokens(outputs["logits"], np.asarray(outputs["likeliest_tokens"]))


def _own(cache: KVCache) -> ArrayCache:
    if not isinstance(cache, ArrayCache):
        raise BackendError(f"a {type(cache).__name__} is the cache of another decoder. Make one with 'new_cache' of this one.")
    return cache

"""Sequences side by side in one KV cache: they join and leave between steps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foveate.engines import Array, KVCache
from foveate.runtime.batch import Pruned, pad
from foveate.runtime.decode import decode_step
from foveate.runtime.sequence import TokenSequence
from foveate.runtime.stages import Stopwatch
from foveate.runtime.text_model import TextModel
from foveate.runtime.types import Chunk

LEAST_REUSED = 8
"""Tokens; a shorter common beginning is read anew, with the rest in one piece."""


@dataclass(eq=False)
class Filling:
    """A prompt that is being read.

    Attributes:
        sequence: whose it is.
        slot: where its keys and values go.
        inputs_embeds: `[1, tokens, hidden_size]`.
        position_ids: `[position_axes, 1, tokens]` int64.
        keys: see `prompt_keys`; None where nothing is remembered.
        done: tokens that the slot holds.
        reused: of these, those that it held before.
    """

    sequence: TokenSequence
    slot: int
    inputs_embeds: Array
    position_ids: np.ndarray
    keys: np.ndarray | None
    done: int = 0
    reused: int = 0


class Rows:
    """The slots of one cache. Those that decode have the first ones, so that a step computes nothing for others.

    Args:
        model: the text model.
        slots: sequences that decode side by side.
        tokens: most tokens of one.
        pad_token_id: fills batches.
        remember: keep what finished sequences leave behind, for prompts that begin alike.

    Attributes:
        running: the sequences that decode, by slot.
        filling: the prompt that is being read, if there is one.
    """

    def __init__(self, model: TextModel, slots: int, tokens: int, pad_token_id: int, remember: bool = True) -> None:
        self.running: list[TokenSequence] = []
        self.filling: Filling | None = None
        self._model = model
        self._pad_token_id = pad_token_id
        self._remember = remember
        self._cache = model.decoder.new_cache(slots, tokens)
        self._views: dict[int, KVCache] = {}
        self._keys: dict[TokenSequence, np.ndarray] = {}
        self._left: dict[int, np.ndarray] = {}  # by slot, what it holds of a finished sequence; the oldest first

    @property
    def slots(self) -> int:
        return self._cache.slots

    @property
    def free(self) -> int:
        """Slots that a sequence may begin in."""
        return self.slots - len(self.running) - (self.filling is not None)

    @property
    def token_bytes(self) -> int:
        """Of keys and values of one token."""
        return self._cache.nbytes // (self.slots * self._cache.capacity_tokens)

    @property
    def capacity_tokens(self) -> int:
        """Of a slot."""
        return self._cache.capacity_tokens

    @property
    def held_tokens(self) -> int:
        """Of all sequences that run."""
        filling = self.filling  # other threads ask too
        return int(self._cache.lengths[: len(self.running)].sum()) + (filling.done if filling else 0)

    def begin(self, sequence: TokenSequence) -> Filling:
        """Gives a sequence a slot; nothing may be filling."""
        assert self.filling is None
        assert self.free
        prompt = sequence.take_prompt()
        stopwatch = Stopwatch(sequence.stage_ms)
        with stopwatch("embed"):
            batch = pad([prompt], self._pad_token_id)
            embeds = self._model.embed(batch)
            keys = prompt_keys(prompt) if self._remember and isinstance(embeds, np.ndarray) else None
        slot, reused = self._take_slot(keys)
        sequence.stage_ms = stopwatch.stage_ms
        self.filling = Filling(sequence, slot, embeds, batch.position_ids, keys, reused, reused)
        return self.filling

    def fill(self, most: int | None = None) -> Chunk | None:
        """Reads on in the prompt, at most so many tokens; what it says first, once it is read. After an error it is gone.

        Args:
            most: None for all. A cache on a GPU takes a prompt in one piece.
        """
        filling = self.filling
        assert filling is not None
        sequence, total, slot = filling.sequence, filling.position_ids.shape[2], filling.slot
        embeds, until = filling.inputs_embeds, total
        if isinstance(embeds, np.ndarray):
            until = min(total, filling.done + most) if most else total
            embeds = embeds[:, filling.done : until]
        stopwatch = Stopwatch(sequence.stage_ms)
        try:
            with stopwatch("prefill"):
                positions = filling.position_ids[:, :, filling.done : until]
                following = self._model.decoder.prefill(self._cache[slot : slot + 1], embeds, positions)
            filling.done, sequence.stage_ms = until, stopwatch.stage_ms
            if until < total:
                return None
            chunk = sequence.draw(following, 0)
        except BaseException:
            self.filling = None
            self._cache[slot : slot + 1].clear()
            raise
        self.filling = None
        self._join(filling)
        return chunk

    def abandon(self) -> None:
        """Forgets the prompt that is being read."""
        if self.filling is not None:
            self._cache[self.filling.slot : self.filling.slot + 1].clear()
            self.filling = None

    def step(self) -> Iterator[tuple[TokenSequence, Chunk | BaseException]]:
        """One token more for each sequence that runs, or what ended it alone; those stay until `leave`.

        Raises:
            FoveateError: the run failed, for all of them.
        """
        count = len(self.running)
        if count not in self._views:
            self._views[count] = self._cache[0:count]
        following = decode_step(self._model, self._views[count], dict(enumerate(self.running)))
        for slot, sequence in enumerate(list(self.running)):
            try:
                yield sequence, sequence.draw(following, slot)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # of a grammar or a sampler, in whatever language: the others go on
                sequence.finish_reason = "error"
                yield sequence, error

    def leave(self, sequence: TokenSequence) -> None:
        """Frees the slot of a sequence; the last one that runs moves into it."""
        slot, last = self.running.index(sequence), len(self.running) - 1
        left = self._keys_of(sequence, int(self._cache.lengths[slot]))
        if left is None:
            self._cache[slot : slot + 1].clear()
        self._cache.exchange(slot, last)
        self.running[slot] = self.running[last]
        self.running.pop()
        if left is not None:
            self._left[last] = left

    def reset(self) -> None:
        """Empties all slots, whatever is in them."""
        self.running.clear()
        self.filling = None
        self._keys.clear()
        self._left.clear()
        self._cache.clear()

    def _take_slot(self, keys: np.ndarray | None) -> tuple[int, int]:
        """The slot to begin in, and how many of the prompt's tokens it holds: at most all but the last.

        Where the prompt goes on with what a slot holds, that one. What has only its beginning in common, as a system prompt,
        is copied, so that both are there afterwards.
        """
        common = {} if keys is None else {slot: min(_common(left, keys), len(keys) - 1) for slot, left in self._left.items()}
        like = max(common, key=lambda slot: common[slot], default=None)
        reused = 0 if like is None else common[like]
        if like is None or reused < LEAST_REUSED:
            like, reused = None, 0
        slot = like
        if like is None or 2 * reused < len(self._left[like]):
            empty = [slot for slot in range(len(self.running), self.slots) if slot not in self._left]
            others = [slot for slot in self._left if slot != like]
            slot = next(iter([*empty, *others]), like)
        assert slot is not None
        if slot != like:
            self._cache[slot : slot + 1].clear()
            if like is not None:
                self._cache.copy(like, slot, reused)
        self._cache.shorten(slot, reused)
        self._left.pop(slot, None)
        return slot, reused

    def _join(self, filling: Filling) -> None:
        """Moves a prompt that is read to the others that run."""
        target = len(self.running)
        if filling.slot != target:
            self._cache.exchange(filling.slot, target)
            # In the same order: the oldest first.
            self._left = {filling.slot if slot == target else slot: left for slot, left in self._left.items()}
        self.running.append(filling.sequence)
        if filling.keys is not None:
            self._keys[filling.sequence] = filling.keys

    def _keys_of(self, sequence: TokenSequence, held: int) -> np.ndarray | None:
        """What a slot holds of a sequence that ends: its prompt, and those of its tokens that were fed."""
        keys = self._keys.pop(sequence, None)
        if keys is None or sequence.finish_reason == "error":
            return None
        fed = np.array(sequence.tokens[: held - len(keys)], np.int64)
        own = np.zeros((len(fed), keys.shape[1]), np.int64)
        own[:, 0] = fed
        own[:, 2:] = (sequence.next_position - len(fed) + np.arange(len(fed)))[:, None]
        return np.concatenate([keys, own])


def prompt_keys(prompt: Pruned) -> np.ndarray:
    """int64 `[tokens, 2 + position_axes]` that say what each token of a prompt is to the decoder: its id or, of a visual token,
    a digest of its embedding, and its positions. Prompts whose first rows are equal have the same keys and values there."""
    keys = np.zeros((len(prompt.input_ids), 2 + len(prompt.position_ids)), np.int64)
    keys[:, 0] = prompt.input_ids
    keys[:, 2:] = prompt.position_ids.T
    kept = np.ascontiguousarray(np.asarray(prompt.visual_embeds)[prompt.keep_indices])
    digests = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in kept)
    keys[prompt.placeholder_indices, :2] = np.frombuffer(digests, np.int64).reshape(-1, 2)
    return keys


def _common(left: np.ndarray, keys: np.ndarray) -> int:
    """How many rows at the beginning are equal."""
    count = min(len(left), len(keys))
    differ = np.flatnonzero((left[:count] != keys[:count]).any(axis=1))
    return int(differ[0]) if len(differ) else count


def run_all(rows: Rows, sequences: list[TokenSequence]) -> None:
    """Decodes sequences to their ends in the calling thread; there are slots for all."""
    for sequence in sequences:
        rows.begin(sequence)
        rows.fill()
        if sequence.finish_reason:
            rows.leave(sequence)
    while rows.running:
        for sequence, outcome in rows.step():
            if isinstance(outcome, BaseException):
                raise outcome
            if sequence.finish_reason:
                rows.leave(sequence)

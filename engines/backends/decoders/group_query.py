"""The graph `decoder`: ONNX Runtime's GroupQueryAttention, which is told how many tokens each slot holds after the run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.engines.backends.decoders.arrays import ArrayCache, ArrayDecoder
from foveate.engines.backends.decoders.protocol import NextTokens
from foveate.engines.backends.memory import Array
from foveate.engines.backends.session import Session
from foveate.engines.errors import BackendError
from foveate.engines.format.manifest import DecoderEntry
from foveate.engines.format.names import DECODER, DECODER_PREFILL


class GroupQueryAttention(ArrayDecoder):
    """Takes prompts for any empty slots at once, padded, and the next chunk for one slot at a time; see `Decoder`.

    Args:
        session: the graph `decoder`.
        entry: its sizes.
        prefill: the graph `decoder_prefill`, where the bundle has one.
    """

    def __init__(self, session: Session, entry: DecoderEntry, prefill: Session | None = None) -> None:
        super().__init__(session, entry)
        self._prefill = prefill

    @classmethod
    def open(cls, graphs: Mapping[str, Session], entry: DecoderEntry) -> GroupQueryAttention:
        """The driver of a bundle's sessions by the names of their graphs."""
        return cls(graphs[DECODER], entry, graphs.get(DECODER_PREFILL))

    def _append(self, cache: ArrayCache, inputs_embeds: Array, position_ids: np.ndarray, new: np.ndarray) -> NextTokens:
        sequence, held, last = inputs_embeds.shape[1], cache.lengths, new - 1
        if sequence > 1 and held.any():
            _check_chunk(cache, sequence, new)
        if sequence > 1 and self._prefill is not None:
            self._fill(self._prefill, np.asarray(inputs_embeds)[:, :-1], position_ids[:, :, :-1], cache, new)
            rows = np.arange(cache.slots)
            inputs_embeds, position_ids = np.asarray(inputs_embeds)[rows, last, None], position_ids[:, rows, last, None]
            sequence, held, last = 1, held + last, np.zeros_like(last)
            new = np.ones_like(last)
        return self._run(cache, inputs_embeds, position_ids, last, _places(held, new, sequence))

    def _fill(
        self, session: Session, inputs_embeds: np.ndarray, position_ids: np.ndarray, cache: ArrayCache, new: np.ndarray
    ) -> None:
        """Appends all but the last token of the longest row. Of shorter ones it may take the last token too: `decoder` writes
        that once more."""
        sequence = inputs_embeds.shape[1]
        places = _places(cache.lengths, np.minimum(new, sequence), sequence)
        session.run({"inputs_embeds": inputs_embeds, "position_ids": position_ids, **places, **cache.past}, cache.presents)


def _places(held: np.ndarray, new: np.ndarray, sequence: int) -> dict[str, np.ndarray]:
    """Of `held [slots]` and `new [slots]` tokens; the operator takes a sequence as long as the total for one from the start."""
    return {"seqlens_k": held + new - np.int32(1), "total_sequence_length": np.array(held.max() + sequence, np.int32)}


def _check_chunk(cache: ArrayCache, sequence: int, new: np.ndarray) -> None:
    """Raises for what the operator computes wrongly or refuses.

    Raises:
        BackendError: several slots, or padding.
    """
    if cache.slots > 1 or int(new[0]) != sequence:
        raise BackendError(
            f"GroupQueryAttention takes {sequence} tokens behind others for one slot at a time and without padding, got "
            f"{cache.slots} slots with {new.tolist()} tokens. Prefill them one by one, or clear them first."
        )

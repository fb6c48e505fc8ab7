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

    def _append(
        self, cache: ArrayCache, inputs_embeds: Array, position_ids: np.ndarray, last: np.ndarray, total: int
    ) -> NextTokens:
        sequence = inputs_embeds.shape[1]
        if sequence > 1 and total > sequence:
            _check_chunk(cache, sequence, last + 1)
        places = _places(cache.lengths + last, total)
        if sequence > 1 and self._prefill is not None:
            # All but the last token of the longest row. Of shorter ones it may take that too: `decoder` writes it once more.
            most = _places(cache.lengths + np.minimum(last, sequence - 2), total - 1)
            feeds = {"inputs_embeds": np.asarray(inputs_embeds)[:, :-1], "position_ids": position_ids[:, :, :-1]}
            self._prefill.run({**feeds, **most, **cache.past}, cache.presents)
            rows = np.arange(cache.slots)
            inputs_embeds, position_ids = np.asarray(inputs_embeds)[rows, last, None], position_ids[:, rows, last, None]
            last = np.zeros_like(last)
        return self._run(cache, inputs_embeds, position_ids, last, places)


def _places(last: np.ndarray, total: int) -> dict[str, np.ndarray]:
    """Where the last token of each slot lies `[slots]`, and the total of the fullest: the operator takes a sequence as long as
    that for one from the start."""
    return {"seqlens_k": last, "total_sequence_length": np.array(total, np.int32)}


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

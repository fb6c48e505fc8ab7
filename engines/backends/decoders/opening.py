"""Which driver works on the sessions of a bundle. Each lowering is one module, loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from foveate.engines.backends.decoders.protocol import Decoder
from foveate.engines.backends.session import Session
from foveate.engines.errors import BackendError
from foveate.engines.format.manifest import DecoderEntry
from foveate.engines.format.names import DECODER, DECODER_STANDARD

DECODERS = {
    DECODER: "foveate.engines.backends.decoders.group_query:GroupQueryAttention",
    DECODER_STANDARD: "foveate.engines.backends.decoders.standard:StandardAttention",
}
"""Graph that decodes -> `module:class` of its driver; `class.open` takes the sessions by graph, and the decoder's sizes."""


def open_decoder(sessions: Iterable[Session], entry: DecoderEntry) -> Decoder:
    """The driver of a bundle's decoder.

    Args:
        sessions: graphs of the bundle, one or more that make up a decoder among them.
        entry: the decoder's sizes.

    Raises:
        BackendError: none of the graphs decodes.
    """
    graphs = {session.spec.name: session for session in sessions}
    for name, target in DECODERS.items():
        if name in graphs:
            module, _, driver = target.partition(":")
            decoder: Decoder = getattr(import_module(module), driver).open(graphs, entry)
            return decoder
    raise BackendError(f"none of the graphs {', '.join(graphs)} decodes. Open one of {', '.join(DECODERS)} too.")

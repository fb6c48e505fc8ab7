"""Graphs as ONNX Runtime keeps them in memory, made ahead of time: optimised, weights in the layout of this CPU's kernels.

Opening such a graph maps its weights instead of packing a copy of them: sessions start faster, and all processes that
have one open share the pages. ONNX Runtime does not say which layout fits which CPU, so an entry belongs to one kind of CPU.
"""

from __future__ import annotations

from pathlib import Path

from foveate.engines.builds.build import engine_key
from foveate.engines.builds.store import ENGINES, EngineStore
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.names import DECODER, DECODER_PREFILL, VISION
from foveate.engines.system.cpu import cpu_target

PACKED_GRAPHS = (VISION, DECODER_PREFILL, DECODER)
"""Those with large matrices; what `embed` reads of its table it maps anyway."""
GRAPH = "graph.onnx"
"""Of an entry, beside `engine.bin`, which holds its weights."""
_BACKEND = "onnxruntime"


def find_packed(bundle: Bundle, graph: str, version: str, engines: Path | None) -> Path | None:
    """The packed graph that fits this CPU.

    Args:
        bundle: the bundle.
        graph: of it.
        version: of ONNX Runtime.
        engines: folder that has to have one; None looks into the bundle's own, where none need be.

    Raises:
        BackendError: there is none in `engines`, or it was changed or is cut off.
    """
    if graph not in PACKED_GRAPHS:
        return None
    key = engine_key(bundle, {}, graph, _BACKEND, version, cpu_target())
    if engines is not None:
        return EngineStore(engines).find(key, bundle.path).folder / GRAPH
    store = EngineStore(bundle.path / ENGINES)
    entry = store.get(key)
    # Reading all weights in every process is what mapping is there to avoid: once does.
    return None if entry is None else store.intact(entry, key, bundle.path).folder / GRAPH

"""Graphs as ONNX Runtime keeps them in memory, made ahead of time: optimised, weights in the layout of this CPU's kernels.

Opening such a graph maps its weights instead of packing a copy of them: sessions start faster, and all processes that
have one open share the pages. ONNX Runtime does not say which layout fits which CPU, so an entry belongs to one kind of CPU.
"""

from __future__ import annotations

from pathlib import Path

from foveate.engines.backends import PREFILL_DECODER
from foveate.engines.build import engine_key
from foveate.engines.bundle import Bundle, hash_file
from foveate.engines.engine_record import is_engine
from foveate.engines.environment import cpu_target
from foveate.engines.errors import BackendError
from foveate.engines.store import ENGINES, EngineStore

PACKED_GRAPHS = ("vision", PREFILL_DECODER, "decoder")
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
    if engines is None:
        entry = EngineStore(bundle.path / ENGINES).get(key)
    else:
        entry = EngineStore(engines).find(key, bundle.path, "ONNX Runtime")
    if entry is None:
        return None
    path = entry.folder / GRAPH
    # The weights are compared by size alone: reading all of them is what mapping is there to avoid.
    intact = is_engine(path) and hash_file(path) == entry.record.details.get("graph_sha256")
    if not intact or entry.engine.stat().st_size != entry.record.engine_bytes:
        raise BackendError(
            f"{entry.folder} was changed or is cut off. Delete it, or run: foveate build {bundle.path} --backend {_BACKEND}"
        )
    return path

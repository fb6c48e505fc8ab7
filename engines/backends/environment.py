"""What runs a bundle here: the facts that latencies hang on."""

from __future__ import annotations

import sys
from dataclasses import fields

from foveate.engines.backends.device import CudaMemory
from foveate.engines.backends.memory import Memory
from foveate.engines.backends.options import SessionOptions
from foveate.engines.builds.latencies import Environment
from foveate.engines.system.cpu import cpu_name, usable_cpus

_MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Name of a backend -> its library."""
_NOT_TIME = frozenset({"engines"})
"""Options that latencies don't hang on."""


def describe_environment(backend: str, options: SessionOptions, memory: Memory) -> Environment:
    """The environment of a session that is open.

    Args:
        backend: its name.
        options: what it was opened with.
        memory: where its arrays lie.
    """
    library = sys.modules.get(_MODULES.get(backend, backend))
    names = [field.name for field in fields(options) if field.name not in _NOT_TIME]
    changed = {name: getattr(options, name) for name in names if getattr(options, name) != getattr(SessionOptions(), name)}
    return Environment(
        device=memory.cuda.info().name if isinstance(memory, CudaMemory) else cpu_name(),
        cpus=usable_cpus(),
        backend=f"{backend} {getattr(library, '__version__', '')}".strip(),
        options={name: str(value) for name, value in changed.items()},
    )

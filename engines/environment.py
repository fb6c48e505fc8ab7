"""What runs a bundle here: the facts that latencies hang on."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from dataclasses import fields
from pathlib import Path

from foveate.engines.backends import SessionOptions
from foveate.engines.device import CudaMemory
from foveate.engines.manifest import Environment
from foveate.engines.memory import Memory

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


def cpu_name() -> str:
    """The processor as it calls itself."""
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def cpu_target() -> str:
    """The kind of CPU: processors of the same word have the same name and instructions."""
    instructions = _cpu_fact("flags", "Features")
    digest = hashlib.sha256(f"{cpu_name()}\n{instructions}".encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _cpu_fact(*names: str) -> str:
    """What Linux says of the first processor by one of these names; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1

"""The CPU: what it is called, and how much of it this process may use."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor as it calls itself."""
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def cpu_target() -> str:
    """The kind of CPU: processors of the same word have the same name and instructions."""
    instructions = _cpu_fact("flags", "Features")
    digest = hashlib.sha256(f"{cpu_name()}\n{instructions}".encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu_fact(*names: str) -> str:
    """What Linux says of the first processor by one of these names; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")

"""Resident memory of this process, where the platform says; Linux does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Resident(NamedTuple):
    """Bytes now and at most, since the start or `reset_peak`; None where the platform does not say."""

    now: int | None
    peak: int | None


def resident_bytes() -> Resident:
    """Of this process: with the pages of files that are mapped and were read."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
    return Resident(found.get("VmRSS"), found.get("VmHWM"))


def reset_peak() -> None:
    """Starts the peak anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

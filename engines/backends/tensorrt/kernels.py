"""Kernels that TensorRT-RTX compiles when an engine first runs, kept for the next process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from foveate.engines.system.files import replace_file


class KernelCache:
    """The compiled kernels of one engine, in a file beside it.

    What was compiled on another GPU or with another driver the library does not take; then the file is written anew.

    Args:
        path: the file; need not exist, nor its folder be writable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._known = b""

    def attach(self, config: Any) -> None:
        """Has a context (by its `IRuntimeConfig`) take kernels from here and leave new ones here."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                self._known = self._path.read_bytes()
            if self._known and not self._cache.deserialize(self._known):
                self._known = b""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes the file, if there is anything new."""
        if self._cache is None:
            return
        kernels = bytes(self._cache.serialize())
        if kernels != self._known:
            with suppress(OSError):  # where engines can't be written, each process compiles for itself
                replace_file(self._path, kernels)
            self._known = kernels

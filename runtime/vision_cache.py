"""Visual tokens of images and videos that were seen before."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from foveate.engines import Array

DEFAULT_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class CacheStats:
    """How a `VisionCache` does: `hits` and `misses` since it was made, and what it holds."""

    hits: int
    misses: int
    entries: int
    nbytes: int


class VisionCache:
    """What the vision graph gave, by the content of its inputs; the least recently used go first. Threads may share it.

    Args:
        max_bytes: of the visual tokens that it keeps; 0 keeps none. What alone is larger is never kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Array] = OrderedDict()
        self._nbytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, feeds: Mapping[str, np.ndarray], compute: Callable[[], Array]) -> Array:
        """What `compute` gives for these inputs, or gave the last time. Nobody may write to it: numpy arrays are read-only."""
        if not self._max_bytes:
            return _read_only(compute())
        key = content_hash(feeds)
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                self._hits += 1
                return found
            self._misses += 1
        # Without the lock: two threads with the same new image both compute it, which harms nobody.
        made = _read_only(compute())
        with self._lock:
            self._keep(key, made)
        return made

    def holds(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether `get` would not have to compute; counts as no use."""
        key = content_hash(feeds) if self._max_bytes else b""
        with self._lock:
            return key in self._entries

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    @property
    def stats(self) -> CacheStats:
        """At this moment."""
        with self._lock:
            return CacheStats(self._hits, self._misses, len(self._entries), self._nbytes)

    def _keep(self, key: bytes, made: Array) -> None:
        if key in self._entries or made.nbytes > self._max_bytes:
            return
        self._entries[key] = made
        self._nbytes += made.nbytes
        while self._nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._nbytes -= oldest.nbytes


def _read_only(array: Array) -> Array:
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
        return array.view()  # which can't be made writable again
    return array


def content_hash(feeds: Mapping[str, np.ndarray]) -> bytes:
    """A digest of names, dtypes, shapes and bytes of arrays; about 1 ms for an image of 512 visual tokens."""
    digest = hashlib.sha256()
    for name, array in sorted(feeds.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()

"""A loaded graph, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from foveate.engines.backends.memory import Array, Memory
from foveate.engines.format.spec import GraphSpec

Arrays = Mapping[str, Array]


class Session(Protocol):
    """One graph, loaded by a backend. Threads may share it, but for `close`.

    Runs on the CPU go on side by side; on a GPU each has the whole GPU while it lasts, so that threads take turns run by run.
    Arrays of a run belong to the thread that asked for it: what two threads feed and write at once must not be the same.
    """

    spec: GraphSpec
    memory: Memory
    """Makes arrays that a run takes and writes without a copy."""

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> Arrays:
        """Runs the graph once.

        Args:
            feeds: every input by name, in the session's memory or on the host.
            buffers: outputs to be written into the caller's arrays, by name, in place of new ones. An array may be a
                feed and a buffer at once where the graph updates it in place (a KV cache).

        Returns:
            Every output by name. New arrays belong to the caller; an output in `buffers` is that very array.

        Raises:
            BackendError: feeds or buffers do not fit the spec, the run failed, or the session is closed.
        """
        ...

    def close(self) -> None:
        """Frees what the backend holds; the session can't run afterwards. Another call does nothing."""
        ...

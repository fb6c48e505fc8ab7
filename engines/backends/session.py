"""A loaded graph, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from foveate.engines.backends.feeds import check_buffers, check_feeds
from foveate.engines.backends.memory import Array, HostMemory, Memory
from foveate.engines.errors import BackendError
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


class FakeSession:
    """A session that answers with a function: for tests of what happens around the graphs.

    `calls` keeps a copy of the feeds of every run, `closed` says whether `close` was called.
    """

    def __init__(self, spec: GraphSpec, answer: Callable[[Arrays], Mapping[str, np.ndarray]]) -> None:
        self.spec = spec
        self.memory = HostMemory()
        self.answer = answer
        self.calls: list[dict[str, np.ndarray]] = []
        self.closed = False

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        if self.closed:
            raise BackendError(f"the session of graph '{self.spec.name}' is closed. Open another one.")
        check_buffers(buffers or {}, self.spec, check_feeds(feeds, self.spec))
        self.calls.append({name: np.array(array) for name, array in feeds.items()})
        outputs = dict(self.answer(feeds))
        for name, buffer in (buffers or {}).items():
            array = np.asarray(buffer)
            array[...] = outputs[name]
            outputs[name] = array
        return outputs

    def close(self) -> None:
        self.closed = True

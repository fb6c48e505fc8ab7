"""A loaded graph, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from foveate.engines.errors import BackendError
from foveate.engines.spec import GraphSpec, check_buffers, check_feeds

Arrays = Mapping[str, np.ndarray]


class Session(Protocol):
    """One graph, loaded by a backend."""

    spec: GraphSpec

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, np.ndarray]:
        """Runs the graph once.

        Args:
            feeds: every input by name.
            buffers: outputs to be written into the caller's arrays, by name, in place of new ones. An array may be a
                feed and a buffer at once where the graph updates it in place (a KV cache).

        Returns:
            Every output by name. New arrays belong to the caller; an output in `buffers` is that very array.

        Raises:
            BackendError: feeds or buffers do not fit the spec, the run failed, or the session is closed.
        """
        ...

    def close(self) -> None:
        """Frees what the backend holds; the session can't run afterwards."""
        ...


class FakeSession:
    """A session that answers with a function: for tests of what happens around the graphs.

    `calls` keeps a copy of the feeds of every run, `closed` says whether `close` was called.
    """

    def __init__(self, spec: GraphSpec, answer: Callable[[Arrays], dict[str, np.ndarray]]) -> None:
        self.spec = spec
        self.answer = answer
        self.calls: list[dict[str, np.ndarray]] = []
        self.closed = False

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        if self.closed:
            raise BackendError(f"the session of graph '{self.spec.name}' is closed. Open another one.")
        check_buffers(buffers or {}, self.spec, check_feeds(feeds, self.spec))
        self.calls.append({name: array.copy() for name, array in feeds.items()})
        outputs = dict(self.answer(feeds))
        for name, buffer in (buffers or {}).items():
            buffer[...] = outputs[name]
            outputs[name] = buffer
        return outputs

    def close(self) -> None:
        self.closed = True

"""A session without a runtime, for tests of what happens around the graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from foveate.engines import BackendError, GraphSpec, HostMemory, check_buffers, check_feeds
from foveate.engines.backends.session import Arrays


class FakeSession:
    """A session that answers with a function.

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

"""What can run a graph. Each backend is one module, loaded when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from foveate.engines.bundle import Bundle
from foveate.engines.errors import BackendError
from foveate.engines.session import Session

BACKENDS = {"onnxruntime": "foveate.engines.backends.onnxruntime:open_session"}
"""Name of a backend -> `module:function`; the function is called with (bundle, graph name, options)."""


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is run. `threads` is the number of CPU threads; 0 leaves it to the backend.

    Raises:
        BackendError: `threads` is negative.
    """

    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise BackendError(f"threads is {self.threads}, expected 0 or more. Use 0 to leave it to the backend.")


def open_session(bundle: Bundle, graph: str, backend: str = "onnxruntime", options: SessionOptions | None = None) -> Session:
    """Loads one graph of a bundle with a backend.

    Raises:
        BackendError: there is no such backend, its library is not installed, or it can't load the graph.
    """
    if backend not in BACKENDS:
        raise BackendError(f"there is no backend '{backend}'. Choose one of {', '.join(BACKENDS)}.")
    module, _, function = BACKENDS[backend].partition(":")
    session: Session = getattr(import_module(module), function)(bundle, graph, options or SessionOptions())
    return session

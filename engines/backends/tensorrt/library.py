"""The two TensorRT libraries. They have one API, so everything else takes the module as an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from foveate.engines.errors import BackendError, reason_of
from foveate.engines.registry import BACKENDS
from foveate.engines.system.packages import install_remedy, missing_package


@dataclass(frozen=True)
class Flavour:
    """What sets a library apart.

    Attributes:
        backend: its name in `BACKENDS`, which has its title and import names.
        ahead_of_time: builds for a target without a GPU of that kind; the other builds for the GPU at hand only.
        timing_cache: measures kernels during the build, and can keep what it measured.
    """

    backend: str
    ahead_of_time: bool
    timing_cache: bool

    @property
    def title(self) -> str:
        return BACKENDS[self.backend].title


FLAVOURS = {
    flavour.backend: flavour
    for flavour in (
        Flavour("tensorrt", ahead_of_time=False, timing_cache=True),
        Flavour("tensorrt-rtx", ahead_of_time=True, timing_cache=False),
    )
}


def load_library(flavour: Flavour) -> Any:
    """The library's module.

    Raises:
        BackendError: its shared libraries can't be loaded.
        MissingPackageError: it is not installed.
    """
    record = BACKENDS[flavour.backend]
    for name in record.libraries:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise BackendError(_broken(flavour, error)) from error
        except (ImportError, OSError) as error:
            raise BackendError(_broken(flavour, error)) from error
    raise missing_package(record.libraries[0], f"it is the backend '{flavour.backend}'", record.extra)


def _broken(flavour: Flavour, error: Exception) -> str:
    return f"{flavour.title} can't be loaded: {reason_of(error)}. {install_remedy(BACKENDS[flavour.backend].extra, again=True)}"


def make_logger(trt: Any, write: Callable[[str], object] | None = None, keep: int = 8) -> Any:
    """A logger of the library that keeps the last errors in `errors` (a deque of lines).

    Args:
        trt: the library's module.
        write: gets every message of level INFO and above, for the build log.
        keep: how many errors to keep.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=keep)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split()))
            if write is not None and severity <= trt.ILogger.Severity.INFO:
                write(f"[{severity.name}] {message}\n")

    return Logger()

"""Deploy multimodal LLMs with only the visual tokens that matter for the question.

    import foveate

    pipe = foveate.load("tiny.bundle")
    answer = pipe.generate(foveate.Request.ask("What colour is the star?", ["scene.png"], keep=0.5))

Everything is loaded on first use: importing foveate loads neither torch nor a backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.engines import (
        BackendError,
        Bundle,
        BundleError,
        BusyError,
        CancelledError,
        DataError,
        DeadlineError,
        ExportError,
        FoveateError,
        LabelError,
        MachineError,
        MissingPackageError,
        OptionError,
        ParityError,
        RequestError,
        ScorerError,
        SessionOptions,
    )
    from foveate.exporter import ExportOptions, export
    from foveate.runtime import (
        Answer,
        Budget,
        Chunk,
        Engine,
        EngineOptions,
        ImageLimits,
        Pipeline,
        Request,
        Sampling,
        Selection,
        Ticket,
        Timings,
        load,
    )

_ROOMS = {
    "foveate.engines": (
        "BackendError",
        "Bundle",
        "BundleError",
        "BusyError",
        "CancelledError",
        "DataError",
        "DeadlineError",
        "ExportError",
        "FoveateError",
        "LabelError",
        "MachineError",
        "MissingPackageError",
        "OptionError",
        "ParityError",
        "RequestError",
        "ScorerError",
        "SessionOptions",
    ),
    "foveate.exporter": ("ExportOptions", "export"),
    "foveate.runtime": (
        "Answer",
        "Budget",
        "Chunk",
        "Engine",
        "EngineOptions",
        "ImageLimits",
        "Pipeline",
        "Request",
        "Sampling",
        "Selection",
        "Ticket",
        "Timings",
        "load",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Answer",
    "BackendError",
    "Budget",
    "Bundle",
    "BundleError",
    "BusyError",
    "CancelledError",
    "Chunk",
    "DataError",
    "DeadlineError",
    "Engine",
    "EngineOptions",
    "ExportError",
    "ExportOptions",
    "FoveateError",
    "ImageLimits",
    "LabelError",
    "MachineError",
    "MissingPackageError",
    "OptionError",
    "ParityError",
    "Pipeline",
    "Request",
    "RequestError",
    "Sampling",
    "ScorerError",
    "Selection",
    "SessionOptions",
    "Ticket",
    "Timings",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'foveate' has no attribute {name!r}")
    return getattr(import_module(_ROOM_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

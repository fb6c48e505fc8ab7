"""What runs a bundle here: the facts that latencies hang on."""

from __future__ import annotations

import sys

from foveate.engines.backends.device import CudaMemory
from foveate.engines.backends.memory import Memory
from foveate.engines.backends.options import changed
from foveate.engines.backends.placement import Place, Placement
from foveate.engines.builds.latencies import Environment
from foveate.engines.format.names import DECODER, VISION
from foveate.engines.registry import BACKENDS
from foveate.engines.system.cpu import cpu_name, usable_cpus

_NOT_TIME = frozenset({"engines"})
"""Options that latencies don't hang on."""


def describe_environment(placement: Placement, memory: Memory) -> Environment:
    """The environment of the stages that depend on the number of tokens.

    Args:
        placement: what was opened.
        memory: where the decoder's arrays lie.
    """
    decoder, vision = placement[DECODER], placement[VISION]
    return Environment(
        device=memory.cuda.info().name if isinstance(memory, CudaMemory) else cpu_name(),
        cpus=usable_cpus(),
        backend=_named(decoder),
        options=_options(decoder),
        vision=""
        if vision.backend == decoder.backend
        else ", ".join([_named(vision), *map(" ".join, _options(vision).items())]),
    )


def _named(place: Place) -> str:
    return f"{place.backend} {_version(place.backend)}".strip()


def _options(place: Place) -> dict[str, str]:
    return {name: str(value) for name, value in changed(place.options).items() if name not in _NOT_TIME}


def _version(backend: str) -> str:
    """Of the library that is loaded."""
    loaded = (sys.modules.get(library) for library in BACKENDS[backend].libraries)
    return next((version for library in loaded if (version := getattr(library, "__version__", ""))), "")

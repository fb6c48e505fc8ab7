"""Which backend runs which part of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from foveate.engines.backends.options import BackendOptions, SessionOptions, changed, option_names
from foveate.engines.errors import OptionError
from foveate.engines.format.names import DECODER, EMBED, SCORE, VISION
from foveate.engines.system.niceness import check_niceness

PARTS = (VISION, SCORE, EMBED, DECODER)


class Place(NamedTuple):
    """A backend, and how it runs graphs."""

    backend: str
    options: BackendOptions
    nice: int = 0
    """Of the threads that run its graphs, see `engines.system.niceness`."""

    def __str__(self) -> str:
        """What answers hang on: the backend, its provider or precision."""
        return f"{self.backend} {self.options.arithmetic}".rstrip()


Placement = Mapping[str, Place]
"""Each of `PARTS` -> what runs it."""


def make_placement(
    backend: str = "onnxruntime",
    options: SessionOptions | None = None,
    vision_backend: str | None = None,
    vision_threads: int | None = None,
    vision_nice: int = 0,
) -> dict[str, Place]:
    """A placement with one backend, or with another one for the vision graph. Each takes the options that it has; a folder of
    engines is the first one's, where that has engines.

    Args:
        backend: what runs all parts.
        options: how.
        vision_backend: what runs the vision graph in its place.
        vision_threads: CPU threads of the vision and the score graph, where they run beside the decoder; None takes those of
            the options.
        vision_nice: niceness of these threads, 0 to 19: with more of it they leave the CPU to the decoder.

    Raises:
        OptionError: there is no such backend, none of them has an option that is set, or both are the same.
    """
    check_niceness("vision_nice", vision_nice)
    if vision_backend == backend:
        raise OptionError(f"'{backend}' runs all graphs already. Leave out vision_backend.", options=("vision_backend",))
    vision_backend = vision_backend or backend
    own = (options or SessionOptions()).of(backend, vision_backend)
    if vision_backend != backend and changed(own[backend]).get("engines"):
        own |= (options or SessionOptions()).without("engines").of(vision_backend, backend) | {backend: own[backend]}
    places = dict.fromkeys(PARTS, Place(backend, own[backend])) | {VISION: Place(vision_backend, own[vision_backend])}
    beside = {part: places[part]._replace(nice=vision_nice) for part in (VISION, SCORE)}
    if vision_threads is not None:
        beside = {part: _with_threads(place, vision_threads) for part, place in beside.items()}
    return places | beside


def _with_threads(place: Place, threads: int) -> Place:
    if "threads" not in option_names(type(place.options)):
        fact = f"backend '{place.backend}' has no CPU threads of its own"
        raise OptionError(f"{fact}. Leave out vision_threads.", options=("vision_threads",))
    return place._replace(options=replace(place.options, threads=threads))  # type: ignore[call-arg]

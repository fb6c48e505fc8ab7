"""Which backend runs which part of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from foveate.engines.backends.options import BackendOptions, SessionOptions
from foveate.engines.format.names import DECODER, EMBED, SCORE, VISION

PARTS = (VISION, SCORE, EMBED, DECODER)


class Place(NamedTuple):
    """A backend, and how it runs graphs."""

    backend: str
    options: BackendOptions

    def __str__(self) -> str:
        """What answers hang on: the backend, its provider or precision."""
        return f"{self.backend} {self.options.arithmetic}".rstrip()


Placement = Mapping[str, Place]
"""Each of `PARTS` -> what runs it."""


def make_placement(
    backend: str = "onnxruntime", options: SessionOptions | None = None, vision_backend: str | None = None
) -> dict[str, Place]:
    """A placement with one backend, or with another one for the vision graph. Each takes the options that it has.

    Args:
        backend: what runs all parts.
        options: how.
        vision_backend: what runs the vision graph in its place.

    Raises:
        OptionError: there is no such backend, or none of them has an option that is set.
    """
    vision_backend = vision_backend or backend
    own = (options or SessionOptions()).of(backend, vision_backend)
    return dict.fromkeys(PARTS, Place(backend, own[backend])) | {VISION: Place(vision_backend, own[vision_backend])}

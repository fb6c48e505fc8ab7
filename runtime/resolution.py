"""How large images and videos are to the model: what a request asks for, and what became of it.

The model's own limits are its processor's (`runtime/processors/`). What is too large to be opened at all, `ImageLimits` says
(`runtime/images.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.engines import RequestError


@dataclass(frozen=True)
class Resolution:
    """Limits of a request that stand in for the model's own; None leaves those.

    Attributes:
        max_visual_tokens: most visual tokens of each image and of each video; what has more is shrunk.
        min_pixels: fewest pixels of each image and frame; what has less is enlarged. For models that resize to any size.
        max_pixels: most pixels of each image and frame; what has more is shrunk. For the same models.

    Raises:
        RequestError: one is no whole number of at least 1, or the fewest are more than the most.
    """

    max_visual_tokens: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__") or value < 1):
                raise RequestError(
                    f"{name} is {value!r}, expected a whole number of at least 1. Leave it out for the model's own.",
                    options=(name,),
                )
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise RequestError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}, expected no more than that. Lower "
                "min_pixels."
            )

    @property
    def named(self) -> tuple[str, ...]:
        """The limits that are set."""
        return tuple(name for name, value in asdict(self).items() if value is not None)

    def refuse_pixels(self, family: str) -> None:
        """For families that resize to sizes of their own.

        Raises:
            RequestError: fewest or most pixels are asked for.
        """
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None:
                raise RequestError(
                    f"{name} is {getattr(self, name)}, but {family} resizes to sizes of its own. Leave it out; "
                    "max_visual_tokens may bound what an image costs."
                )

    def check_tokens(self, fewest: int, what: str, remedy: str = "Raise it or leave it out.") -> None:
        """For what can't be made smaller.

        Args:
            fewest: visual tokens.
            what: has them.
            remedy: what the caller can do.

        Raises:
            RequestError: fewer are asked for.
        """
        if self.max_visual_tokens is not None and self.max_visual_tokens < fewest:
            raise RequestError(
                f"max_visual_tokens is {self.max_visual_tokens}, but {what} has {fewest} visual tokens or more in this model. "
                + remedy,
                options=("max_visual_tokens",),
            )


NO_LIMITS = Resolution()
"""A request that leaves the model its own limits."""


@dataclass(frozen=True)
class Resized:
    """What a request's limits made of an image or a video.

    Attributes:
        size: width and height in pixels of what the model saw.
        usual_size: those without the request's limits.
        visual_tokens: that it became.
        usual_visual_tokens: without the request's limits.
        by: the fields of the request that did it.
    """

    size: tuple[int, int]
    usual_size: tuple[int, int]
    visual_tokens: int
    usual_visual_tokens: int
    by: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As lists and numbers, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def describe(resized: Sequence[Resized | None]) -> str:
    """One line about the images and videos of a request, empty where none was resized."""
    facts = [
        f"visual {number} seen at {one.size[0]} x {one.size[1]} in place of {one.usual_size[0]} x {one.usual_size[1]} pixels "
        f"({one.visual_tokens} in place of {one.usual_visual_tokens} visual tokens) by {' and '.join(one.by)}"
        for number, one in enumerate(resized, start=1)
        if one is not None
    ]
    return "; ".join(facts)

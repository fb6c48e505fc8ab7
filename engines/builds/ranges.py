"""Shape profiles: which sizes an engine takes, and which it is tuned for.

A user chooses a range for a handful of symbols (`ShapeProfile`). The ranges of every input of every graph follow from those,
so no two of them can contradict each other.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from foveate.engines.errors import BundleError, OptionError, RequestError
from foveate.engines.format import names
from foveate.engines.format.cache import WINDOW_TOKENS, whole
from foveate.engines.format.spec import GraphSpec, TensorSpec
from foveate.engines.format.symbols import find_symbol

MAX_ELEMENTS = 2**31 - 1
"""Most elements of one tensor, and so the largest dimension, that TensorRT takes; above it warns and builds all the same."""

_RANGE = re.compile(r"([0-9]{1,18})(?::([0-9]{1,18}):([0-9]{1,18}))?")

Shape = tuple[int, ...]


class Range(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Smallest, tuned-for and largest value of a symbol.

    Raises:
        OptionError: not whole numbers in order, from 0 to the largest dimension.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in (self.min, self.opt, self.max))
        if not (whole and 0 <= self.min <= self.opt <= self.max <= MAX_ELEMENTS):
            raise OptionError(
                f"range {self.min}:{self.opt}:{self.max}: expected whole numbers MIN:OPT:MAX with 0 <= MIN <= OPT <= MAX <= "
                f"{MAX_ELEMENTS}. Put them in order, e.g. 64:512:4096."
            )

    def __str__(self) -> str:
        return str(self.opt) if self.fixed else f"{self.min}:{self.opt}:{self.max}"

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max

    @classmethod
    def parse(cls, text: str) -> Range:
        """Reads `64:512:4096`, or `512` for that value alone; `str` gives the text back.

        Raises:
            OptionError: the text is neither, or the numbers are not in order.
        """
        match = _RANGE.fullmatch(text)
        if match is None:
            raise OptionError(f"'{text}' is not a range, expected MIN:OPT:MAX or one number. Write it like 64:512:4096.")
        low, opt, high = (int(part or match[1]) for part in match.groups())
        return cls(low, opt, high)

    @property
    def fixed(self) -> bool:
        """Whether it holds one value only."""
        return self.min == self.max

    def including(self, value: int) -> Range:
        """The range, grown as far as `value`."""
        return Range(min(self.min, value), self.opt, max(self.max, value))

    def __add__(self, other: Range) -> Range:
        return Range(self.min + other.min, self.opt + other.opt, self.max + other.max)


class VisionShape(NamedTuple):
    """What one run of the `vision` graph takes, and how many visual tokens it gives."""

    frames: int
    patches: int
    """Of each frame."""
    visual_tokens: int
    others: Mapping[str, int] = {}
    """Of further symbols of the family's graph."""


class ShapeProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes that a bundle's engines are built for. A prompt without images is always served: it needs no range.

    Raises:
        OptionError: a range that starts at 0, or no room for an answer.
    """

    visual_tokens: Range
    """Of one prompt, all its images together, before any is dropped."""
    patches: Range
    """Of one frame in one run of the `vision` graph."""
    text_tokens: Range = Range(1, 64, 1024)
    """Of one prompt without its visual tokens."""
    new_tokens: int = 256
    """The longest answer."""
    batch: Range = Range(1, 1, 1)
    frames: Range = Range(1, 1, 1)
    """Of one run of the `vision` graph."""
    others: tuple[tuple[str, Range], ...] = ()
    """Further symbols of the family's `vision` graph, in one run."""

    def __post_init__(self) -> None:
        ranges = {name: getattr(self, name) for name in ("visual_tokens", "patches", "text_tokens", "batch", "frames")}
        for name, sizes in (*ranges.items(), *self.others):
            if sizes.min < 1:
                raise OptionError(f"{name} is {sizes}, expected a range that starts at 1 or above. Raise its min.")
        if type(self.new_tokens) is not int or not 1 <= self.new_tokens <= MAX_ELEMENTS:
            raise OptionError(
                f"new_tokens is {self.new_tokens!r}, expected a whole number from 1 to {MAX_ELEMENTS}. "
                "It is the length of the longest answer: use 256."
            )

    @classmethod
    def from_visual_tokens(
        cls, visual_tokens: Range, shape_of_tokens: Callable[[int], VisionShape], **options: Any
    ) -> ShapeProfile:
        """The profile in which the vision graph takes what the visual tokens need.

        Args:
            visual_tokens: see the field.
            shape_of_tokens: what an image of so many visual tokens takes (`Processor.vision_shape_of_tokens`).
            **options: `text_tokens`, `new_tokens`, `batch`.
        """
        # From one token on: several small images may share the visual tokens of a prompt, and a part of an image has fewer.
        shapes = [shape_of_tokens(tokens) for tokens in (1, visual_tokens.opt, visual_tokens.max)]
        return cls(visual_tokens=visual_tokens, **vision_ranges(shapes), **options)

    @property
    def total_tokens(self) -> Range:
        """Of a prompt with images, before any visual token is dropped."""
        return self.visual_tokens + self.text_tokens

    @property
    def prompt_tokens(self) -> Range:
        """Of a prompt as the decoder sees it: anything from no visual token, where there is no image, to all of them."""
        return Range(self.text_tokens.min, self.total_tokens.opt, self.total_tokens.max)

    @property
    def kv_capacity(self) -> int:
        """Tokens that the KV cache holds per row: the longest prompt and the longest answer, in whole windows of 64."""
        return whole(self.total_tokens.max + self.new_tokens, WINDOW_TOKENS)

    def to_flags(self) -> list[str]:
        """The options of `foveate build` for this profile; frames and patches have none, they follow from the visual tokens."""
        return [part for name in _FLAGGED for part in (_flag(name), str(getattr(self, name)))]

    def widened(self, symbol: str, value: int) -> ShapeProfile:
        """The profile, grown until it takes a request.

        What is a sum grows through one of its parts: `total_tokens` and `sequence` through the text, `cache_tokens` through the
        answer. Patches, frames and visual tokens grow in proportion.

        Args:
            symbol: a field, or a symbol of a graph.
            value: what the request needs, of one prompt.

        Raises:
            OptionError: no range decides the symbol, or no profile has that value.
        """
        match symbol:
            case "visual_tokens" | "kept_tokens":
                return self._with_visual_tokens(self.visual_tokens.including(value))
            case "frames":
                frames = self.frames.including(value)
                return replace(self, frames=frames, visual_tokens=_scale(self.visual_tokens, self.frames, frames))
            case "patches":  # what else grows with the image grows too, or two symbols would count its growth twice
                patches = self.patches.including(value)
                return replace(self._with_visual_tokens(_scale(self.visual_tokens, self.patches, patches)), patches=patches)
            case _ if symbol in (others := dict(self.others)):
                old, new = others[symbol], others[symbol].including(value)
                grown = self._with_visual_tokens(_scale(self.visual_tokens, old, new))
                return replace(grown, others=tuple((name, new if name == symbol else sizes) for name, sizes in grown.others))
            case "text_tokens" | "instruction_tokens":
                return replace(self, text_tokens=self.text_tokens.including(value))
            case "batch":
                return replace(self, batch=self.batch.including(value))
            case "total_tokens" if value < self.total_tokens.min:
                text = self.text_tokens.including(max(1, value - self.visual_tokens.min))
                visual = self.visual_tokens.including(value - text.min)
                return replace(self, text_tokens=text)._with_visual_tokens(visual)
            case "sequence" if value < self.prompt_tokens.min:
                return replace(self, text_tokens=self.text_tokens.including(value))
            case "total_tokens" | "sequence":
                longest = max(self.text_tokens.max, value - self.visual_tokens.max)
                return replace(self, text_tokens=self.text_tokens.including(longest))
            case "new_tokens":
                return replace(self, new_tokens=max(self.new_tokens, value))
            case "cache_tokens":
                return replace(self, new_tokens=max(self.new_tokens, value - self.total_tokens.max))
        raise OptionError(f"'{symbol}' has no range of its own, it follows from others. Widen {', '.join(_FLAGGED)}.")

    def _with_visual_tokens(self, visual_tokens: Range) -> ShapeProfile:
        old = self.visual_tokens
        others = tuple((name, _scale(sizes, old, visual_tokens)) for name, sizes in self.others)
        return replace(self, visual_tokens=visual_tokens, patches=_scale(self.patches, old, visual_tokens), others=others)


def vision_ranges(shapes: Sequence[VisionShape]) -> dict[str, Any]:
    """`frames`, `patches` and `others` of the profile whose smallest, usual and largest image take these shapes."""
    return {
        "frames": Range(*(shape.frames for shape in shapes)),
        "patches": Range(*(shape.patches for shape in shapes)),
        "others": tuple((name, Range(*(shape.others[name] for shape in shapes))) for name in shapes[0].others),
    }


_FLAGGED = ("visual_tokens", "text_tokens", "new_tokens", "batch")


class GraphProfile(msgspec.Struct, frozen=True):
    """One optimization profile of one graph: a range per symbol, sums behind what they are made of."""

    name: str
    ranges: dict[str, Range]

    def range_of(self, symbol: str) -> Range:
        """The range of a symbol.

        Raises:
            BundleError: the profile has no such symbol.
        """
        if symbol not in self.ranges:
            raise BundleError(
                f"profile '{self.name}' has no symbol '{symbol}', it has {', '.join(self.ranges)}. "
                "Export the bundle again with this version of foveate."
            )
        return self.ranges[symbol]

    def outside(self, symbols: Mapping[str, int]) -> list[str]:
        """Which symbols have a value that does not fit, in the profile's order."""
        misfits = {symbol for symbol, value in symbols.items() if value not in self.range_of(symbol)}
        return [symbol for symbol in self.ranges if symbol in misfits]


def graph_profiles(spec: GraphSpec, shapes: ShapeProfile, single: bool = False) -> tuple[GraphProfile, ...]:
    """The profiles that a graph's engine is built with, the tightest first; with `single` one that serves what all of them do.

    Raises:
        OptionError: a graph, or a dimension of it, that this foveate has no profile for.
    """
    if spec.name not in _GRAPHS:
        raise OptionError(f"graph '{spec.name}' has no shape profile, engines are built of {', '.join(_GRAPHS)}. Choose one.")
    profiles = _GRAPHS[spec.name](shapes)
    if single:
        profiles = (_joined(profiles),)
    for profile in profiles:
        for tensor in spec.inputs:
            tensor_shapes(tensor, profile)
    return profiles


def _joined(profiles: Sequence[GraphProfile]) -> GraphProfile:
    """What any of the profiles takes, tuned for the last one, the longest."""
    *others, last = profiles
    ranges = dict(last.ranges)
    for other in others:
        for name, added in other.ranges.items():
            ranges[name] = ranges[name].including(added.min).including(added.max)
    return GraphProfile("any" if others else last.name, ranges)


def _vision_profiles(shapes: ShapeProfile) -> tuple[GraphProfile, ...]:
    # From one token on: several images may share those of a prompt, and a part of an image has fewer.
    visual = Range(1, shapes.visual_tokens.opt, shapes.visual_tokens.max)
    ranges = {"frames": shapes.frames, "patches": shapes.patches, **dict(shapes.others), "visual_tokens": visual}
    return (GraphProfile(names.VISION, ranges),)


def _score_profiles(shapes: ShapeProfile) -> tuple[GraphProfile, ...]:
    # From one visual token on: a small picture is scored too, and a part of an image.
    text = shapes.text_tokens
    ranges = {
        "visual_tokens": Range(1, shapes.visual_tokens.opt, shapes.visual_tokens.max),
        "instruction_tokens": Range(1, text.opt, text.max),
        "total_tokens": Range(1 + text.min, shapes.total_tokens.opt, shapes.total_tokens.max),
    }
    return (GraphProfile(names.SCORE, ranges),)


def _embed_profiles(shapes: ShapeProfile) -> tuple[GraphProfile, ...]:
    """Visual tokens are those of the whole batch."""
    prompt, batch, nothing = shapes.prompt_tokens, shapes.batch, Range(0, 0, 0)
    visual = Range(0, batch.opt * shapes.visual_tokens.opt, batch.max * shapes.visual_tokens.max)
    # From 1 on in batch and sequence: the question alone is embedded too, for selectors that compare visual tokens with it.
    prompts = {
        "batch": Range(1, batch.opt, batch.max),
        "visual_tokens": visual,
        "kept_tokens": visual,
        "sequence": Range(1, prompt.opt, prompt.max),
    }
    steps = {"batch": batch, "visual_tokens": nothing, "kept_tokens": nothing, "sequence": Range(1, 1, 1)}
    return GraphProfile("step", steps), GraphProfile("prompt", prompts)


def _decoder_profiles(shapes: ShapeProfile) -> tuple[GraphProfile, ...]:
    prompt, capacity = shapes.prompt_tokens, shapes.kv_capacity
    # Tuned for the middle of the longest answer.
    cache = Range(1, prompt.opt + shapes.new_tokens // 2, capacity)
    shared = {"batch": shapes.batch, "kv_capacity": Range(capacity, capacity, capacity)}
    return (
        GraphProfile("decode", {**shared, "sequence": Range(1, 1, 1), "cache_tokens": cache}),
        # Behind what a slot holds already a prompt looks at more than itself.
        GraphProfile("prefill", {**shared, "sequence": prompt, "cache_tokens": Range(prompt.min, prompt.opt, capacity)}),
    )


_GRAPHS: dict[str, Callable[[ShapeProfile], tuple[GraphProfile, ...]]] = {
    names.VISION_STANDARD: _vision_profiles,
    names.SCORE: _score_profiles,
    names.EMBED: _embed_profiles,
    names.DECODER_STANDARD: _decoder_profiles,
}


def tensor_shapes(tensor: TensorSpec, profile: GraphProfile) -> tuple[Shape, Shape, Shape]:
    """Smallest, tuned-for and largest shape of a tensor.

    Raises:
        BundleError: the tensor has a symbol that the profile has not.
    """
    dims = [Range(dim, dim, dim) if isinstance(dim, int) else profile.range_of(dim) for dim in tensor.shape]
    return tuple(dim.min for dim in dims), tuple(dim.opt for dim in dims), tuple(dim.max for dim in dims)


def check_profiles(spec: GraphSpec, profiles: Sequence[GraphProfile]) -> None:
    """Refuses what TensorRT would only warn about: inputs and outputs with too many elements at the profile's max.

    Raises:
        OptionError: a tensor is too large.
    """
    for profile in profiles:
        for tensor in (*spec.inputs, *spec.outputs):
            symbols = [dim for dim in tensor.shape if isinstance(dim, str)]
            if symbols and all(symbol in profile.ranges for symbol in symbols):  # an output may have a symbol of its own
                _check_size(spec.name, tensor, symbols, profile)


def _check_size(graph: str, tensor: TensorSpec, symbols: list[str], profile: GraphProfile) -> None:
    largest = tensor_shapes(tensor, profile)[2]
    if math.prod(largest) > MAX_ELEMENTS:
        symbol = max(symbols, key=lambda name: profile.ranges[name].max)
        fields = find_symbol(symbol).decided_by
        raise OptionError(
            f"graph '{graph}' in profile '{profile.name}': tensor '{tensor.name}' grows to {list(largest)}, expected at most "
            f"{MAX_ELEMENTS} elements. Lower the max of '{symbol}': use a smaller {' or '.join(fields)}.",
            options=fields,
        )


def choose(profiles: Sequence[GraphProfile], symbols: Mapping[str, int]) -> int | None:
    """Index of the first profile, and so the tightest, that takes these values; None where `refusal` has to say why not.

    Raises:
        BundleError: the profiles have no such symbol.
    """
    return next((index for index, profile in enumerate(profiles) if not profile.outside(symbols)), None)


def refusal(
    graph: str, profiles: Sequence[GraphProfile], symbols: Mapping[str, int], shapes: ShapeProfile, command: Sequence[str]
) -> RequestError:
    """The error for values that no profile takes, with the command that builds engines which do.

    Args:
        graph: the graph's name.
        profiles: what `graph_profiles` gave for it.
        symbols: the values that `choose` found no profile for.
        shapes: what the engines were built for.
        command: the start of the command line, up to the flags of the profile: `["foveate", "build", "x.bundle", ...]`.

    Raises:
        OptionError: engines can't be built for such a value, e.g. 0 tokens or another `kv_capacity`.
    """

    def distance(profile: GraphProfile) -> tuple[int, int]:
        # A symbol with one value says what a profile is for: with another value the request is not of that kind.
        outside = profile.outside(symbols)
        return sum(profile.ranges[symbol].fixed for symbol in outside), len(outside)

    nearest = min(profiles, key=distance)
    outside = nearest.outside(symbols)
    for symbol in outside:
        # Where there is a batch, visual tokens are counted over all of it.
        shared = "batch" in nearest.ranges and symbol in ("visual_tokens", "kept_tokens")
        shapes = shapes.widened(symbol, _divide_up(symbols[symbol], shapes.batch.max) if shared else symbols[symbol])
    symbol = outside[0]
    limits = nearest.ranges[symbol]
    takes = f"{limits.max}" if limits.fixed else f"{limits.min} to {limits.max}"
    return RequestError(
        f"{find_symbol(symbol).request.format(symbols[symbol])} ('{symbol}' of graph '{graph}'), the engine takes {takes}. "
        f"Run: {shlex.join([*command, *shapes.to_flags()])}"
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)


def _scale(scaled: Range, old: Range, new: Range) -> Range:
    """The range, grown in proportion as `old` grew to `new`."""
    return Range(max(1, scaled.min * new.min // old.min), scaled.opt, _divide_up(scaled.max * new.max, old.max))

"""What flows through the pipeline, as values."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from foveate.engines import Array, Grid, RequestError
from foveate.engines.errors import shown
from foveate.runtime.budget import Budget
from foveate.runtime.encoding import Encode, Encoding, Part, check_encode, check_redundancy
from foveate.runtime.explain import draw
from foveate.runtime.grammar import Grammar
from foveate.runtime.images import EncodedFile, ImageSource, is_encoded
from foveate.runtime.picture import Picture
from foveate.runtime.resolution import Resized, Resolution
from foveate.runtime.sampling import Sampling
from foveate.runtime.select import Policy, Selection, Selector
from foveate.runtime.stages import Timings
from foveate.runtime.values import flag, items, number, settle, share, unusable, whole
from foveate.runtime.video import VideoSource, check_sampling
from foveate.runtime.vision_cache import content_hash

Message = Mapping[str, Any]
VisualKind = Literal["image", "video"]
_SINGLE = (str, os.PathLike, Image.Image, np.ndarray)
"""What is one image or video; so is an encoded or an open file."""
MOST_LOGPROBS = 20
"""Largest `Request.logprobs`, OpenAI's limit."""
_LIMITS = ("max_visual_tokens", "min_pixels", "max_pixels")


@dataclass(frozen=True)
class Request:
    """One question to the model.

    Attributes:
        messages: the chat in the form of Hugging Face: `[{"role": "user", "content": [{"type": "image"}, {"type": "text",
            "text": "What is this?"}]}]`. An image part may carry its own source (`{"type": "image", "image": source}`), and a
            video part likewise (`{"type": "video", "video": source}`).
        images: sources of the image parts that carry none, in their order.
        videos: sources of the video parts that carry none, in their order.
        fps: frames per second that the model sees of each video file; None takes what the model's authors take. Where they know
            no rate, a number makes `frame_rule` "interval".
        max_frames: most frames that it sees of each video; None takes what the model's authors take.
        frame_rule: how frames of a file are chosen, a name in `FRAME_RULES`; None takes the rule of the model's authors.
        max_visual_tokens, min_pixels, max_pixels: how large images and videos are to the model, see `Resolution`; None leaves
            the model's own limits. `Answer.resized` says what they changed.
        budget: how many visual tokens stay, counted over all images and frames of the request.
        sampling: how tokens are drawn; greedy by default.
        select: a selector, its name in `SELECTORS`, or a function that picks by the scores; None takes the bundle's scorer.
        min_retained: refuse a budget unless at least this share of the right answers stays right, by the lower end of the
            bundle's retention curve.
        explain: score the visual tokens even where all stay, so that `Answer.explain` can show the scores.
        max_new_tokens: most tokens to generate; None takes the bundle's default.
        stop: strings that end the answer; they are not part of it. None takes the bundle's, which are the checkpoint's.
        encode: share of the visual tokens that the vision tower may compute, chosen by a glance at a small picture, or `auto`;
            see `Encode`. None has it compute all. `Answer.encoding` says what it did.
        redundancy: leave out visual tokens whose pixels a neighbour has already, before the vision tower: the largest
            difference between two pixel values that counts as none, 0 to 255; 0 for equal pixels alone. None leaves out none;
            with `encode="auto"` it stands for 0.
        ignore_eos: draw `max_new_tokens` tokens whatever they are, to measure how long that takes.
        logprobs: 0 to 20: give the log probability of each token, and those of so many of the likeliest ones at its place. They
            are the model's own, before any processing. None gives neither.
        grammar: what the answer has to be. Where it is finished the answer ends, with `stop`, whatever `min_new_tokens` says.
        raw: the text of the one message is the whole prompt, without a chat template; the answer goes on with it.

    Collections may be of any kind, generators too, and numbers numpy's; they are kept as tuples and Python's. A single image
    or video counts as a list of one. None stands for the default of every field but `messages`.

    Raises:
        RequestError: a field is unusable.
    """

    messages: Sequence[Message]
    images: Sequence[ImageSource] = ()
    budget: Budget = field(default_factory=Budget)
    sampling: Sampling = field(default_factory=Sampling)
    select: Selector | Policy | str | None = None
    min_retained: float | None = None
    explain: bool = False
    max_new_tokens: int | None = None
    stop: Sequence[str] | None = None
    videos: Sequence[VideoSource] = ()
    fps: float | None = None
    max_frames: int | None = None
    ignore_eos: bool = False
    frame_rule: str | None = None
    max_visual_tokens: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    encode: Encode | None = None
    redundancy: int | None = None
    logprobs: int | None = None
    grammar: Grammar | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            if getattr(self, entry.name) is None and entry.name != "messages":
                made = entry.default_factory() if callable(entry.default_factory) else entry.default
                settle(self, **{entry.name: made})
        settle(
            self,
            messages=items("messages", self.messages, "a list of messages", "Use Request.ask for a single question."),
            images=_sources("images", self.images),
            videos=_sources("videos", self.videos),
            explain=flag("explain", self.explain),
            ignore_eos=flag("ignore_eos", self.ignore_eos),
            raw=flag("raw", self.raw),
        )
        if self.fps is not None:
            settle(self, fps=number("fps", self.fps, lambda fps: fps > 0, "above 0", "Use 1 for a frame a second."))
        for name in ("max_frames", "max_new_tokens", *_LIMITS):
            if getattr(self, name) is not None:
                settle(self, **{name: whole(name, getattr(self, name), 1)})
        if self.logprobs is not None:
            settle(self, logprobs=_logprobs(self.logprobs))
        _check_grammar(self.grammar, self.ignore_eos)
        check_sampling(self.fps, self.max_frames, self.frame_rule)
        settle(self, encode=check_encode(self.encode), redundancy=check_redundancy(self.redundancy))
        _ = self.resolution
        _check_kind("budget", self.budget, Budget, "a Budget, as Budget(ratio=0.5)")
        _check_kind("sampling", self.sampling, Sampling, "a Sampling, as Sampling(temperature=0.7)")
        if self.select is not None and not isinstance(self.select, str) and not callable(self.select):
            raise unusable("select", self.select, "a selector, its name or a function")
        if self.stop is not None:
            settle(self, stop=_stop_strings(self.stop))
        if self.min_retained is not None:
            remedy = "Use 0.95 for 95 % of the right answers."
            settle(self, min_retained=share("min_retained", self.min_retained, remedy))

    @property
    def limits_encoding(self) -> bool:
        """Whether it says anything about what the vision tower computes."""
        return self.encode is not None or self.redundancy is not None

    @property
    def resolution(self) -> Resolution:
        """How large images and videos are to the model."""
        return Resolution(self.max_visual_tokens, self.min_pixels, self.max_pixels)

    @classmethod
    def ask(
        cls,
        question: str | None,
        images: ImageSource | Iterable[ImageSource] | None = (),
        *,
        videos: str | os.PathLike[str] | EncodedFile | np.ndarray | Iterable[VideoSource] | None = (),
        keep: float | None = None,
        keep_tokens: int | None = None,
        mass: float | None = None,
        ttft_ms: float | None = None,
        only_if_faster: bool = False,
        **options: Any,
    ) -> Request:
        """A question about images and videos, which stand before it in this order.

        Args:
            question: the user's text; may be empty or None.
            images: one image or several in a collection of any kind: path, encoded bytes, open file, PIL image or array.
            videos: one video or several: path, encoded bytes, open file, array or list of frames. One that is given as a list
                of frames stands in a list of videos.
            keep: `Budget.ratio`.
            keep_tokens: `Budget.tokens`.
            mass: `Budget.mass`.
            ttft_ms: `Budget.ttft_ms`.
            only_if_faster: `Budget.only_if_faster`.
            **options: other fields of `Request`; a `budget` in place of the five before.

        Raises:
            RequestError: an unusable budget or option.
        """
        _check_kind("the question", question or "", str, "text")
        images, videos = _sources("images", images), _sources("videos", videos)
        content = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in videos]
        content += [{"type": "text", "text": question}] if question else []
        messages = ({"role": "user", "content": content},)
        budget, given = Budget(keep, keep_tokens, mass, ttft_ms, only_if_faster), options.pop("budget", None)
        if given is not None and budget != Budget():
            raise RequestError(f"the budget is given twice, as {shown(budget)} and as {shown(given)}. Drop one.")
        return cls(messages, images, budget if given is None else given, videos=videos, **options)


def _sources(name: str, value: object) -> tuple[Any, ...]:
    """Images or videos as a tuple: of nothing, of a single one, or of a collection of them."""
    if value is None:
        return ()
    if isinstance(value, _SINGLE) or is_encoded(value):
        return (value,)
    return items(name, value, f"one of {name} or a list of them")


def _stop_strings(value: object) -> tuple[str, ...]:
    texts = items("stop", value, "a list of strings that are not empty")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise RequestError(f"stop holds {shown(text)}, expected strings that are not empty. Leave stop out for none.")
    return texts


def _logprobs(value: object) -> int:
    count = whole("logprobs", value, 0)
    if count > MOST_LOGPROBS:
        raise unusable("logprobs", count, f"a whole number of 0 to {MOST_LOGPROBS}")
    return count


def _check_grammar(grammar: object, ignore_eos: bool) -> None:
    if grammar is None:
        return
    if not callable(getattr(grammar, "start", None)):
        raise unusable("grammar", grammar, "a Grammar, as foveate.serve.grammar makes them", "Leave it out for none.")
    if ignore_eos:
        fact = "a grammar ends the answer where it is finished, and ignore_eos draws max_new_tokens tokens whatever they are"
        raise RequestError(f"{fact}. Give either.")


def _check_kind(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise unusable(name, value, expected)


@dataclass(frozen=True, eq=False)
class Visual:
    """One image or video as the vision graph wants it.

    Attributes:
        feeds: inputs of the vision graph, by name.
        grids: frames, rows and columns of its visual tokens, one grid after the other.
        pictures: what its visual tokens tile: one for an image, one for each frame of a video.
        kind: which placeholder it stands for.
        resized: what the request's limits made of it; None where they changed nothing.
    """

    feeds: Mapping[str, np.ndarray]
    grids: tuple[Grid, ...]
    pictures: tuple[Picture, ...]
    kind: VisualKind = "image"
    resized: Resized | None = None

    @property
    def num_tokens(self) -> int:
        return sum(math.prod(grid) for grid in self.grids)


class Run(NamedTuple):
    """One run of the vision graph over some of the visual tokens of an image or video."""

    feeds: Mapping[str, np.ndarray]
    """What it takes."""
    tokens: np.ndarray
    """int64: which visual tokens it gives, in its order."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A prompt with its placeholders in place.

    Attributes:
        input_ids: `[total_tokens]` int64, one placeholder per visual token.
        position_ids: `[position_axes, total_tokens]` int64.
        visual_indices: `[visual_tokens]` int64, where the placeholders stand.
        next_position: where the positions of generated text start.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    visual_indices: np.ndarray
    next_position: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request as the graphs want it, unpruned: `visuals` is what its pixels give, whatever is asked about them; the rest is
    what the question makes of the prompt.

    Attributes:
        layout: the prompt, with room for every visual token.
        visuals: the images and videos, in the order of their placeholders.
        instruction_indices: `[instruction_tokens]` int64, the rows whose attention is scored; empty without images and videos.
        note: why the instruction is not the user's text; empty where it is.
    """

    layout: Layout
    visuals: tuple[Visual, ...]
    instruction_indices: np.ndarray
    note: str = ""
    present: np.ndarray | None = None
    """`[visual_tokens]` int64: which of the visual tokens of `visuals` there are; None for all."""

    @property
    def num_visual_tokens(self) -> int:
        return len(self.layout.visual_indices)

    @cached_property
    def seed(self) -> int:
        """A number from 0 below 2^64 that prompt and pixels give, for what is drawn anew for every question."""
        digests = [content_hash({"input_ids": self.layout.input_ids}), *(content_hash(visual.feeds) for visual in self.visuals)]
        return int.from_bytes(hashlib.sha256(b"".join(digests)).digest()[:8], "little")

    @property
    def num_text_tokens(self) -> int:
        return len(self.layout.input_ids) - self.num_visual_tokens

    @property
    def grids(self) -> tuple[Grid, ...]:
        return tuple(grid for visual in self.visuals for grid in visual.grids)

    @property
    def resized(self) -> tuple[Resized | None, ...]:
        """What the request's limits made of each visual."""
        return tuple(visual.resized for visual in self.visuals)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those of every visual; their tokens are counted over all visual tokens."""
        starts = accumulate((visual.num_tokens for visual in self.visuals), initial=0)
        return tuple(p.behind(start) for visual, start in zip(self.visuals, starts, strict=False) for p in visual.pictures)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A request up to the vision graph: what no budget and no selector changes.

    Attributes:
        prepared: what pixels and question give before any graph runs.
        visual_embeds: `[visual_tokens, hidden_size]`, what the vision graph gives for the whole of `prepared.visuals`, where it
            left them: the same for every question. They may be those that the vision cache keeps: a numpy array is read-only,
            and nobody may write to one on a GPU.
        stage_ms: what these stages took.
        encoding: what the tower computed, where the request said how much.
        part: the visual tokens that it computed, of which `prepared` and `visual_embeds` then are; None where it computed all.
    """

    prepared: Prepared
    visual_embeds: Array
    stage_ms: Mapping[str, float]
    encoding: Encoding | None = None
    part: Part | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token of an answer was to the model, before temperature, penalties and masks.

    Attributes:
        token_id: the token that was drawn.
        logprob: natural logarithm of its probability.
        top_logprobs: the likeliest tokens at its place, likeliest first, each with the same.
    """

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Begun:
    """What an engine did for a request before it is admitted, and what it says about it.

    Attributes:
        prepared: what `Pipeline.prepare` gave for the request.
        stage_ms: what that took.
        capacity_tokens: most tokens of prompt and answer.
        why: why it keeps fewer visual tokens than it asked for; empty where that is not so.
    """

    prepared: Prepared
    stage_ms: Mapping[str, float]
    capacity_tokens: int
    why: str = ""


@dataclass(frozen=True)
class Chunk:
    """What one decode step adds to an answer.

    Attributes:
        text: new text; empty while a character or a possible stop string is incomplete.
        token_id: the token drawn in this step.
        finish_reason: None while the answer goes on, else `eos`, `stop` (a stop string, or a finished grammar) or `length`.
        index: which request of the batch.
        logprob: natural logarithm of the token's probability; None where `Request.logprobs` does not ask.
        top_logprobs: see `TokenLogprob`.
    """

    text: str
    token_id: int
    finish_reason: str | None = None
    index: int = 0
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """A finished answer and how it came about.

    Attributes:
        text: without special tokens and without the stop string.
        tokens: every token drawn, with the end-of-text token where it ended so.
        finish_reason: `eos`, `stop` or `length`.
        selection: which visual tokens stayed, and why.
        grids: frames, rows and columns of the visual tokens of each image or video, which may have several grids; `selection`
            counts over all of them.
        prompt_tokens: tokens of the prompt that the decoder saw.
        timings: wall time per stage.
        kv_bytes: allocated for this request's KV cache; in an engine, for the tokens that it may hold.
        pictures: the images and frames as the model saw them, where `explain` can draw on them: visual tokens were dropped, or
            scored. `Pipeline.prepare` has them for any request.
        frame_seconds: when each frame of the videos is shown.
        encoding: what the vision tower computed; None where the request set neither `encode` nor `redundancy`.
        part: which visual tokens that were, and the small pictures that it looked at first; None where it computed all.
        predicted_ttft_ms: what `Timings.ttft_ms` was expected to be; None where the budget is not in milliseconds.
        resized: for each image and video, what the request's `max_visual_tokens`, `min_pixels` and `max_pixels` made of it;
            None where they changed nothing.
        logprobs: of each of `tokens`; empty where `Request.logprobs` does not ask.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    selection: Selection
    grids: tuple[Grid, ...]
    prompt_tokens: int
    timings: Timings
    kv_bytes: int
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    predicted_ttft_ms: float | None = None
    encoding: Encoding | None = None
    frame_seconds: tuple[float, ...] = ()
    resized: tuple[Resized | None, ...] = ()
    part: Part | None = field(default=None, repr=False)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    reused_tokens: int = 0
    """Tokens of the prompt whose keys and values were there from a request that began alike; 0 outside of an engine."""

    def explain(self) -> Image.Image:
        """A picture of what was decided: each image and frame, its scores as a heat map, and the visual tokens that stayed.
        Where the tower computed a part, also the small picture that it looked at first, what that said, and the part.

        Raises:
            RequestError: the request has no image or video, or the scores were not computed (`Request.explain`).
        """
        return draw(self.text, self.selection, self.pictures, self.part)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures as plain lists, numbers and strings, ready for JSON."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "selection": self.selection.to_dict(),
            "grids": [list(grid) for grid in self.grids],
            "frame_seconds": list(self.frame_seconds),
            "prompt_tokens": self.prompt_tokens,
            "timings": self.timings.to_dict(),
            "kv_bytes": self.kv_bytes,
            "reused_tokens": self.reused_tokens,
            "predicted_ttft_ms": self.predicted_ttft_ms,
            "encoding": self.encoding and self.encoding.to_dict(),
            "resized": [one and one.to_dict() for one in self.resized],
            "logprobs": [asdict(one) for one in self.logprobs],
        }

"""What is answered: the bodies of every endpoint, and how they are made of an answer of the runtime."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from PIL import Image

from foveate.runtime import Answer
from foveate.runtime.picture import Picture


class Reply(msgspec.Struct, kw_only=True, frozen=True):
    """Base of the bodies."""


class PromptDetails(Reply, kw_only=True, frozen=True):
    """What the prompt was made of.

    Attributes:
        cached_tokens: of the prompt, those whose keys and values were there already.
        visual_tokens: of images and videos, before any were left out.
        visual_tokens_kept: of them, those that the model read.
    """

    cached_tokens: int
    visual_tokens: int
    visual_tokens_kept: int


class Usage(Reply, kw_only=True, frozen=True):
    """Tokens of a request.

    Attributes:
        prompt_tokens: that the decoder saw, without visual tokens that were left out.
        completion_tokens: of all answers, with the token that ended each.
        total_tokens: both.
        prompt_tokens_details: what the prompt was made of.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class SeenPicture(Reply, kw_only=True, frozen=True):
    """An image, or a frame of a video, as the model saw it.

    Attributes:
        image: as a `data:` address.
        rows: of the visual tokens that tile it.
        columns: of them.
        tokens: their indices among all, row by row; frames may share tokens.
        seconds: when a frame is shown; null for an image.
    """

    image: str
    rows: int
    columns: int
    tokens: list[int]
    seconds: float | None


class Explanation(Reply, kw_only=True, frozen=True):
    """What was decided about the visual tokens.

    Attributes:
        kept: indices of those that stayed, over all images and frames.
        scores: what each was worth to the selector; null where it ranks none.
        grids: frames, rows and columns of the visual tokens of each image or video.
        pictures: the images and frames, and which visual tokens tile each.
        image: a picture of it, as a `data:` address; null without images and videos.
    """

    kept: list[int]
    scores: list[float] | None
    grids: list[list[int]]
    pictures: list[SeenPicture]
    image: str | None


class Report(Reply, kw_only=True, frozen=True):
    """How an answer came about.

    Attributes:
        visual_tokens: of images and videos.
        kept_tokens: of them, those that the model read.
        reason: why other than asked; empty in the ordinary case.
        selector: that chose them, `all` where none was asked.
        encoding: what the vision tower computed; null where it was not limited.
        timings: milliseconds by stage, with `ttft_ms` and a list `decode_ms`.
        predicted_ttft_ms: what was planned with; null where the budget is not in milliseconds.
        kv_bytes: of keys and values.
        reused_tokens: of the prompt, those whose keys and values were there already.
        explain: what was decided, where it was asked for.
    """

    visual_tokens: int
    kept_tokens: int
    reason: str
    selector: str
    encoding: dict[str, Any] | None
    timings: dict[str, float | list[float]]
    predicted_ttft_ms: float | None
    kv_bytes: int
    reused_tokens: int
    explain: Explanation | None = None


class Alternative(Reply, kw_only=True, frozen=True):
    """A token that could have stood there.

    Attributes:
        token: its text.
        logprob: natural logarithm of its probability.
        bytes: of its text, which may be a part of a character.
    """

    token: str
    logprob: float
    bytes: list[int] | None


class LogprobToken(Alternative, kw_only=True, frozen=True):
    """A token of the answer.

    Attributes:
        top_logprobs: the likeliest ones.
    """

    top_logprobs: list[Alternative]


class Logprobs(Reply, kw_only=True, frozen=True):
    """How likely the tokens were.

    Attributes:
        content: a row for each token.
    """

    content: list[LogprobToken]
    refusal: None = None


Finish = Literal["stop", "length"]


class AssistantMessage(Reply, kw_only=True, frozen=True):
    """An answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Reply, kw_only=True, frozen=True):
    """One of `n` answers.

    Attributes:
        finish_reason: `stop` at its end or at a stop string, `length` where it was cut off.
        foveate: how it came about.
    """

    index: int
    message: AssistantMessage
    finish_reason: Finish
    logprobs: Logprobs | None
    foveate: Report


class ChatCompletion(Reply, kw_only=True, frozen=True):
    """The answer of `/v1/chat/completions`.

    Attributes:
        foveate: how the first choice came about.
    """

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    foveate: Report
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str


class Delta(Reply, kw_only=True, frozen=True, omit_defaults=True):
    """What comes new."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Reply, kw_only=True, frozen=True):
    """A part of one of `n` answers."""

    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: Logprobs | None = None


class ChatChunk(Reply, kw_only=True, frozen=True):
    """One event of a stream of `/v1/chat/completions`.

    Attributes:
        foveate: in the event with a `finish_reason`: how that choice came about.
        usage: in the last event, where it was asked for; it has no choices.
    """

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    foveate: Report | msgspec.UnsetType = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str


class CompletionLogprobs(Reply, kw_only=True, frozen=True):
    """How likely the tokens were, each list with an entry for each."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply, kw_only=True, frozen=True):
    """One of `n` answers, or a part of one in a stream."""

    index: int
    text: str
    finish_reason: Finish | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Reply, kw_only=True, frozen=True):
    """The answer of `/v1/completions`, and each event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    foveate: Report | msgspec.UnsetType = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str


class TextContent(Reply, kw_only=True, frozen=True):
    """The text of an output message."""

    text: str
    annotations: list[str] = []
    logprobs: list[str] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(Reply, kw_only=True, frozen=True):
    """The message of a response."""

    id: str
    content: list[TextContent]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class InputDetails(Reply, kw_only=True, frozen=True):
    """See `PromptDetails`."""

    cached_tokens: int
    visual_tokens: int
    visual_tokens_kept: int
    cache_write_tokens: int = 0


class OutputDetails(Reply, kw_only=True, frozen=True):
    """Of the answer's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(Reply, kw_only=True, frozen=True):
    """Tokens of a response; see `Usage`."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails = OutputDetails()


class Incomplete(Reply, kw_only=True, frozen=True):
    """Why a response was cut off."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(Reply, kw_only=True, frozen=True):
    """The answer of `/v1/responses`.

    Attributes:
        foveate: how it came about; null while it goes on.
    """

    id: str
    created_at: int
    model: str
    output: list[OutputMessage]
    status: Literal["in_progress", "completed", "incomplete"]
    usage: ResponseUsage | None = None
    foveate: Report | None = None
    incomplete_details: Incomplete | None = None
    object: Literal["response"] = "response"
    error: None = None
    instructions: str | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    tool_choice: Literal["none"] = "none"
    tools: list[str] = []
    store: bool = False


class ModelFacts(Reply, kw_only=True, frozen=True):
    """What foveate says of a bundle.

    Attributes:
        family: of the model.
        source: name of the checkpoint.
        precision: of the graphs.
        images: whether it takes images.
        videos: whether it takes videos.
        retained: keep ratio to share of right answers that stay; empty where it was not measured.
    """

    family: str
    source: str
    precision: str
    images: bool
    videos: bool
    retained: dict[str, float]


class Model(Reply, kw_only=True, frozen=True):
    """A bundle.

    Attributes:
        max_model_len: most tokens of one request, pruned prompt and answer together.
        foveate: what foveate says of it.
    """

    id: str
    created: int
    max_model_len: int
    foveate: ModelFacts
    object: Literal["model"] = "model"
    owned_by: str = "foveate"


class ModelList(Reply, kw_only=True, frozen=True):
    """All bundles."""

    data: list[Model]
    object: Literal["list"] = "list"


class Tokens(Reply, kw_only=True, frozen=True):
    """The answer of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(Reply, kw_only=True, frozen=True):
    """The answer of `/detokenize`."""

    prompt: str


class Health(Reply, kw_only=True, frozen=True):
    """Whether it works."""

    status: Literal["ok", "draining", "stuck"]


class Version(Reply, kw_only=True, frozen=True):
    """Of foveate."""

    version: str


def usage_of(answers: Sequence[Answer]) -> Usage:
    """Of the answers to one request. The prompt counts once."""
    first = answers[0]
    completion = sum(len(answer.tokens) for answer in answers)
    return Usage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=completion,
        total_tokens=first.prompt_tokens + completion,
        prompt_tokens_details=PromptDetails(
            cached_tokens=first.reused_tokens,
            visual_tokens=first.selection.num_visual_tokens,
            visual_tokens_kept=len(first.selection.keep_indices),
        ),
    )


def response_usage(answer: Answer) -> ResponseUsage:
    """The same as `/v1/responses` calls it."""
    usage = usage_of([answer])
    details = usage.prompt_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_tokens_details=InputDetails(
            cached_tokens=details.cached_tokens,
            visual_tokens=details.visual_tokens,
            visual_tokens_kept=details.visual_tokens_kept,
        ),
    )


def report_of(answer: Answer, explain: bool) -> Report:
    """How an answer came about. With `explain` it draws a picture, which takes long."""
    selection = answer.selection
    return Report(
        visual_tokens=selection.num_visual_tokens,
        kept_tokens=len(selection.keep_indices),
        reason=selection.reason,
        selector=selection.selector,
        encoding=None if answer.encoding is None else answer.encoding.to_dict(),
        timings=answer.timings.to_dict(),
        predicted_ttft_ms=answer.predicted_ttft_ms,
        kv_bytes=answer.kv_bytes,
        reused_tokens=answer.reused_tokens,
        explain=_explanation(answer) if explain else None,
    )


def _explanation(answer: Answer) -> Explanation:
    selection = answer.selection
    return Explanation(
        kept=selection.keep_indices.tolist(),
        scores=None if selection.scores is None else selection.scores.tolist(),
        grids=[list(grid) for grid in answer.grids],
        pictures=[_seen(picture) for picture in answer.pictures],
        image=_data_address(answer.explain(), "png") if selection.num_visual_tokens else None,
    )


def _seen(picture: Picture) -> SeenPicture:
    (rows, columns), tokens = picture.grid, picture.tokens.tolist()
    # JPEG: a video has many frames, and they are looked at, not computed with.
    image = _data_address(picture.image.convert("RGB"), "jpeg")
    return SeenPicture(image=image, rows=rows, columns=columns, tokens=tokens, seconds=picture.seconds)


def _data_address(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


FINISHES: Mapping[str, Finish] = {"eos": "stop", "stop": "stop", "length": "length"}
"""OpenAI's words for how an answer ends."""

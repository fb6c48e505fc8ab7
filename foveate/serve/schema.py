"""What clients may send, and nothing else: the home of every field. openapi.json and docs/serving.md are made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

MAX_CHOICES = 16
"""Most answers to one request."""
MAX_TOP_LOGPROBS = 20
_DAY_MS = 86_400_000

NotDone = Annotated[None, Meta(description="Not done here: refused unless null, since it would change answers")]
Empty = Annotated[list[Any], Meta(max_length=0)]
Ignored = Annotated[Any, Meta(description="Changes no answer: ignored")]
Text = str
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Address = Annotated[str, Meta(min_length=1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenKey = Annotated[str, Meta(pattern="^[0-9]{1,10}$")]
Milliseconds = Annotated[float, Meta(gt=0, le=_DAY_MS)]
Stop = Annotated[str, Meta(min_length=1)]
Stops = Annotated[list[Stop], Meta(max_length=16)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Alternatives = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]


class Body(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of all: a key that is not documented is refused by name."""


class Own(Body, kw_only=True, frozen=True):
    """What foveate does that others don't: how many visual tokens stay, and what is told about it."""

    keep: Annotated[
        Share | Literal["auto"] | None,
        Meta(
            description='Share of the visual tokens to keep; `"auto"` keeps all, and fewer under load, not below `min_retained`'
        ),
    ] = None
    keep_tokens: Annotated[Positive | None, Meta(description="Number of visual tokens to keep")] = None
    mass: Annotated[Share | None, Meta(description="Keep the fewest tokens whose scores sum to this share")] = None
    ttft_ms: Annotated[
        Milliseconds | None, Meta(description="Keep as many as let the answer begin in time, by what `profile --save` measured")
    ] = None
    only_if_faster: Annotated[
        bool | None, Meta(description="With `keep` or `keep_tokens`: keep all where scoring takes longer than it saves")
    ] = None
    select: Annotated[Name | None, Meta(description="How to choose them; null takes the bundle's scorer")] = None
    min_retained: Annotated[
        Share | None,
        Meta(description="Refuse a budget that keeps less than this share of the right answers; the floor of `auto`"),
    ] = None
    encode: Annotated[
        Share | Literal["auto"] | None, Meta(description="Share of the visual tokens that the vision tower computes")
    ] = None
    redundancy: Annotated[
        Annotated[int, Meta(ge=0, le=255)] | None,
        Meta(description="Leave out visual tokens whose pixels a neighbour has: the largest difference that counts as none"),
    ] = None
    max_visual_tokens: Annotated[Positive | None, Meta(description="Shrink each image and video to so many")] = None
    min_pixels: Annotated[Positive | None, Meta(description="Enlarge each image and frame to so many pixels")] = None
    max_pixels: Annotated[
        Positive | None, Meta(description="Shrink each image and frame to so many pixels; it raises no limit of the server")
    ] = None
    fps: Annotated[
        Annotated[float, Meta(gt=0, le=1000)] | None, Meta(description="Frames per second to look at; null takes the model's")
    ] = None
    max_frames: Annotated[Positive | None, Meta(description="Most frames of a video; it raises no limit of the server")] = None
    frame_rule: Annotated[Name | None, Meta(description="How frames of a file are chosen; null takes the model's")] = None
    explain: Annotated[
        bool | None, Meta(description="Answer with the kept indices, the scores and a picture of them as a `data:` address")
    ] = None
    priority: Annotated[
        Annotated[int, Meta(ge=0, le=1000)] | None, Meta(description="Lets requests with lower numbers go first; null is 0")
    ] = None
    deadline_ms: Annotated[Milliseconds | None, Meta(description="Give up after so long, with status 504")] = None


class ImageAddress(Body, kw_only=True, frozen=True):
    """Where an image is."""

    url: Annotated[Address, Meta(description="`data:image/...;base64,...`, or what the server was told to allow")]
    detail: Annotated[
        Literal["auto", "high"] | None, Meta(description="`low` is not done: set `foveate.max_visual_tokens`")
    ] = None


class VideoAddress(Body, kw_only=True, frozen=True):
    """Where a video is."""

    url: Annotated[Address, Meta(description="`data:video/...;base64,...`, or what the server was told to allow")]


class TextPart(Body, kw_only=True, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: Annotated[Text, Meta(description="As it is: special tokens in it are plain text")]


class ImagePart(Body, kw_only=True, frozen=True, tag_field="type", tag="image_url"):
    """An image."""

    image_url: Annotated[ImageAddress | Address, Meta(description="An object, or the address alone")]


class VideoPart(Body, kw_only=True, frozen=True, tag_field="type", tag="video_url"):
    """A video file."""

    video_url: Annotated[VideoAddress | Address, Meta(description="An object, or the address alone")]


class FramesPart(Body, kw_only=True, frozen=True, tag_field="type", tag="video"):
    """A video as its frames, or as a file."""

    video: Annotated[
        Annotated[list[Address], Meta(min_length=1)] | Address,
        Meta(description="Addresses of its frames in their order, each an image; or the address of a file"),
    ]


Part = TextPart | ImagePart | VideoPart | FramesPart
Parts = Annotated[list[Part], Meta(min_length=1)]


class ChatMessage(Body, kw_only=True, frozen=True):
    """One message of a chat."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"], Meta(description="`developer` is read as `system`")
    ]
    content: Annotated[Text | Parts, Meta(description="Text, or a list of parts")]
    name: NotDone = None
    tool_calls: NotDone = None
    tool_call_id: NotDone = None
    function_call: NotDone = None
    audio: NotDone = None
    refusal: Ignored = None
    annotations: Ignored = None
    foveate: Ignored = None


class JsonSchema(Body, kw_only=True, frozen=True):
    """A schema that the answer follows."""

    name: Annotated[Name, Meta(description="Any; not used")]
    schema: Annotated[dict[str, Any], Meta(description="JSON schema; what the grammar can't follow is refused")]
    description: Ignored = None
    strict: Annotated[bool | None, Meta(description="It is always followed to the letter")] = None


class TextFormat(Body, kw_only=True, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Body, kw_only=True, frozen=True, tag_field="type", tag="json_object"):
    """A JSON object."""


class JsonSchemaFormat(Body, kw_only=True, frozen=True, tag_field="type", tag="json_schema"):
    """JSON by a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StreamOptions(Body, kw_only=True, frozen=True):
    """What a stream has beside the text."""

    include_usage: Annotated[bool | None, Meta(description="A last chunk without choices that has `usage`")] = None
    include_obfuscation: Ignored = None


_MODEL = Meta(description="Name of a bundle, see `/v1/models`; may be left out where there is one")


class Drawing(Body, kw_only=True, frozen=True):
    """How tokens are drawn; shared by the endpoints that generate text. Null is the default everywhere."""

    model: Annotated[Name | None, _MODEL] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0, the default, takes the likeliest token")
    ] = None
    top_p: Annotated[Share | None, Meta(description="Draw from the likeliest tokens that sum to it; needs a temperature")] = (
        None
    )
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None,
        Meta(description="Draw from the k likeliest tokens; 0 and -1 for all; needs a temperature"),
    ] = None
    seed: Annotated[Seed | None, Meta(description="The same seed draws the same tokens; choice i of `n` has the seed + i")] = (
        None
    )
    presence_penalty: Annotated[Penalty | None, Meta(description="Taken from the logits of tokens that came before")] = None
    frequency_penalty: Annotated[Penalty | None, Meta(description="The same, times how often they came")] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None,
        Meta(description="Above 1, tokens of prompt and answer become less likely; null takes the checkpoint's"),
    ] = None
    logit_bias: Annotated[dict[TokenKey, Bias] | None, Meta(description="Added to logits, by token id as text")] = None
    stop: Annotated[
        Stops | Stop | None, Meta(description="Ends the answer, and is no part of it; null takes the checkpoint's")
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="Draw the whole number of tokens, to measure how long it takes")] = None
    min_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None, Meta(description="The answer does not end before so many")
    ] = None
    n: Annotated[Choices | None, Meta(description="How many answers")] = None
    stream: Annotated[bool | None, Meta(description="Send the answer as it grows, as server-sent events")] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="Needs `stream`")] = None
    foveate: Annotated[Own | None, Meta(description="What foveate does that others don't")] = None
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None


class ChatBody(Drawing, kw_only=True, frozen=True):
    """`POST /v1/chat/completions`"""

    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1)], Meta(description="The chat, as the bundle's template takes it")
    ]
    max_completion_tokens: Annotated[Positive | None, Meta(description="Longest answer; null takes the bundle's default")] = (
        None
    )
    max_tokens: Annotated[Positive | None, Meta(description="The older name of `max_completion_tokens`")] = None
    logprobs: Annotated[bool | None, Meta(description="Tell how likely each token was, before any setting changed it")] = None
    top_logprobs: Annotated[
        Alternatives | None, Meta(description="And as many of the likeliest tokens in its place; needs `logprobs`")
    ] = None
    response_format: Annotated[ResponseFormat | None, Meta(description="Text, JSON, or JSON by a schema")] = None
    tools: Annotated[Empty | None, Meta(description="Not done here: refused unless empty or null")] = None
    functions: Annotated[Empty | None, Meta(description="Not done here: refused unless empty or null")] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Meta(description="There are no tools to choose from")] = None
    function_call: Annotated[Literal["none", "auto"] | None, Meta(description="There are no functions to call")] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Meta(max_length=1)] | None, Meta(description="Answers are text")] = (
        None
    )
    audio: NotDone = None
    reasoning_effort: NotDone = None
    verbosity: NotDone = None
    web_search_options: NotDone = None
    parallel_tool_calls: Ignored = None
    prediction: Ignored = None


class CompletionBody(Drawing, kw_only=True, frozen=True):
    """`POST /v1/completions`"""

    prompt: Annotated[
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1)],
        Meta(description="Text that the model goes on with, without a chat template; or a list of one"),
    ]
    max_tokens: Annotated[Positive | None, Meta(description="Longest answer; null takes the bundle's default")] = None
    logprobs: Annotated[
        Alternatives | None, Meta(description="How many of the likeliest tokens to tell in each token's place")
    ] = None
    echo: Annotated[Literal[False] | None, Meta(description="Not done here: refused unless false or null")] = None
    best_of: Annotated[Literal[1] | None, Meta(description="Not done here: refused unless 1 or null")] = None
    suffix: NotDone = None


class InputText(Body, kw_only=True, frozen=True, tag_field="type", tag="input_text"):
    """Text of a message."""

    text: Text


class OutputText(Body, kw_only=True, frozen=True, tag_field="type", tag="output_text"):
    """Text of an earlier answer."""

    text: Text
    annotations: Ignored = None
    logprobs: Ignored = None


class InputImage(Body, kw_only=True, frozen=True, tag_field="type", tag="input_image"):
    """An image."""

    image_url: Annotated[Address, Meta(description="As in chat completions")]
    detail: Annotated[Literal["auto", "high"] | None, Meta(description="`low` is not done")] = None
    file_id: NotDone = None


class InputVideo(Body, kw_only=True, frozen=True, tag_field="type", tag="input_video"):
    """A video; OpenAI has no such part."""

    video_url: Annotated[Address, Meta(description="As in chat completions")]


InputPart = InputText | OutputText | InputImage | InputVideo


class InputMessage(Body, kw_only=True, frozen=True):
    """One message."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], Meta(description="Who says it")]
    content: Annotated[Text | Annotated[list[InputPart], Meta(min_length=1)], Meta(description="Text, or a list of parts")]
    type: Annotated[Literal["message"] | None, Meta(description="There are no other items")] = None
    id: Ignored = None
    status: Ignored = None


class ResponseJsonSchema(Body, kw_only=True, frozen=True, tag_field="type", tag="json_schema"):
    """JSON by a schema."""

    name: Annotated[Name, Meta(description="Any; not used")]
    schema: Annotated[dict[str, Any], Meta(description="JSON schema; what the grammar can't follow is refused")]
    description: Ignored = None
    strict: Annotated[bool | None, Meta(description="It is always followed to the letter")] = None


class TextOptions(Body, kw_only=True, frozen=True):
    """What the text has to be."""

    format: Annotated[
        TextFormat | JsonObjectFormat | ResponseJsonSchema | None, Meta(description="Text, JSON, or JSON by a schema")
    ] = None
    verbosity: NotDone = None


class ResponseStreamOptions(Body, kw_only=True, frozen=True):
    """Nothing that changes anything."""

    include_obfuscation: Ignored = None


class ResponsesBody(Body, kw_only=True, frozen=True):
    """`POST /v1/responses`"""

    input: Annotated[
        Annotated[str, Meta(min_length=1)] | Annotated[list[InputMessage], Meta(min_length=1)],
        Meta(description="The question, or the whole chat: no state is kept"),
    ]
    model: Annotated[Name | None, _MODEL] = None
    instructions: Annotated[Text | None, Meta(description="A system message before the others")] = None
    max_output_tokens: Annotated[Positive | None, Meta(description="Longest answer; null takes the bundle's default")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0, the default, takes the likeliest token")
    ] = None
    top_p: Annotated[Share | None, Meta(description="Draw from the likeliest tokens that sum to it; needs a temperature")] = (
        None
    )
    text: Annotated[TextOptions | None, Meta(description="What the text has to be")] = None
    stream: Annotated[bool | None, Meta(description="Send the answer as it grows, as server-sent events")] = None
    stream_options: Annotated[ResponseStreamOptions | None, Meta(description="Nothing that changes anything")] = None
    foveate: Annotated[Own | None, Meta(description="What foveate does that others don't")] = None
    tools: Annotated[Empty | None, Meta(description="Not done here: refused unless empty or null")] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Meta(description="There are no tools to choose from")] = None
    truncation: Annotated[Literal["disabled"] | None, Meta(description="Nothing is cut off")] = None
    background: Annotated[Literal[False] | None, Meta(description="Not done here: refused unless false or null")] = None
    include: Annotated[Empty | None, Meta(description="Not done here: refused unless empty or null")] = None
    previous_response_id: NotDone = None
    conversation: NotDone = None
    prompt: NotDone = None
    reasoning: NotDone = None
    top_logprobs: NotDone = None
    max_tool_calls: NotDone = None
    parallel_tool_calls: Ignored = None
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None


class TokenizeBody(Body, kw_only=True, frozen=True):
    """`POST /tokenize`"""

    model: Annotated[Name | None, _MODEL] = None
    prompt: Annotated[Text | None, Meta(description="Text, without a chat template")] = None
    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1)] | None,
        Meta(description="A chat, with its template and one token for each visual token; in place of `prompt`"),
    ] = None
    add_special_tokens: Annotated[bool | None, Meta(description="Of a `prompt`: what the tokenizer puts around it; true")] = (
        None
    )


class DetokenizeBody(Body, kw_only=True, frozen=True):
    """`POST /detokenize`"""

    tokens: Annotated[list[TokenId], Meta(description="Token ids")]
    model: Annotated[Name | None, _MODEL] = None


AnyBody = TypeVar("AnyBody", bound=Body)

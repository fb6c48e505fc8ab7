"""Messages to token ids: chat template, tokens, and which of them are the user's instruction.

What a caller writes is data. It reaches the template as unguessable markers and takes its place after rendering, so it is
known for every character whether the template or a caller wrote it; a caller's `<|image_pad|>` stays eleven characters of text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NoReturn, get_args

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from foveate.engines import BundleError, PromptEntry, RequestError
from foveate.runtime.images import ImageSource
from foveate.runtime.types import Message, VisualKind
from foveate.runtime.video import VideoSource

ROLES = ("system", "user", "assistant", "tool")
KINDS: tuple[VisualKind, ...] = get_args(VisualKind)

_TEMPLATE, _CALLER, _USER = 0, 1, 2  # who wrote a character


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt before its placeholders are expanded.

    Attributes:
        input_ids: `[tokens]` int64.
        user_text: `[tokens]` bool, tokens with a character that a user wrote.
        placeholders: what the prompt waits for, in order; a template may move images and videos before the text.
    """

    input_ids: np.ndarray
    user_text: np.ndarray
    placeholders: tuple[VisualKind, ...]


class PromptEncoder:
    """Renders and tokenizes messages.

    Args:
        entry: the manifest's `prompt`.
        tokenizer: the bundle's tokenizer.

    Raises:
        BundleError: the chat template is not valid, or the tokenizer lacks a placeholder.
    """

    def __init__(self, entry: PromptEntry, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = _compile(entry.chat_template)
        self._named: dict[str, str] = {str(name): text for name, text in entry.template_tokens.items()}
        special = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        tokens: dict[VisualKind, str | None] = {"image": entry.image_token, "video": entry.video_token}
        self._tokens = {kind: token for kind, token in tokens.items() if token}
        self._placeholders = {_token_id(tokenizer, token): kind for kind, token in self._tokens.items()}
        special |= {id: self._tokens[kind] for id, kind in self._placeholders.items()}
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._control = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")  # a lookahead finds overlaps too
        self._control_ids = np.array(sorted(special), np.int64)

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids of a chat, with the turn of the assistant opened.

        Raises:
            RequestError: messages that are not in the chat form, that the template refuses, or whose text would become a
                control token; or a video where the model takes none.
        """
        self._check_kinds(messages)
        text, authors = self._render(messages)
        ids, spans = self._tokenize(text, authors)
        if (_any_in(authors != _TEMPLATE, spans) & np.isin(ids, self._control_ids)).any():
            raise RequestError("the text of a message would become a control token of the model. Remove it from the text.")
        placeholders = tuple(self._placeholders[id] for id in ids.tolist() if id in self._placeholders)
        if len(self._placeholders) < len(self._tokens):  # one token for both: the template keeps the order of the parts
            placeholders = tuple(
                kind for message in messages for part in _parts(message) for kind in KINDS if part["type"] == kind
            )
        return EncodedPrompt(ids, _any_in(authors == _USER, spans), placeholders)

    def _check_kinds(self, messages: Sequence[Message]) -> None:
        for kind in KINDS:
            if kind not in self._tokens and any(part.get("type") == kind for message in messages for part in _parts(message)):
                raise RequestError(f"the messages have a part of type '{kind}', which this model does not take. Leave it out.")

    def _render(self, messages: Sequence[Message]) -> tuple[str, np.ndarray]:
        """The prompt as text, and who wrote each of its characters."""
        if not messages:
            raise RequestError("the request has no messages, expected at least one of a user. Add the question.")
        markers = _Markers()
        chat = [_read_message(message, markers) for message in messages]
        try:
            rendered = self._template.render(**self._named, messages=chat, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RequestError(
                f"the bundle's chat template refuses the messages: {error}. Change their roles or order."
            ) from error
        parts = markers.resolve(rendered)
        authors = np.repeat([author for _, author in parts], [len(part) for part, _ in parts])
        return "".join(part for part, _ in parts), authors

    def _tokenize(self, text: str, authors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and the span of characters `[tokens, 2]` of each.

        The text is cut inside each control token that a caller wrote any part of: its pieces are ordinary text.
        """
        cuts = [0, *self._forged(text, authors), len(text)]
        pieces = [self._tokenizer.encode(text[a:b], add_special_tokens=False) for a, b in pairwise(cuts)]
        ids = np.array([id for piece in pieces for id in piece.ids], np.int64)
        spans = [np.array(piece.offsets, np.int64).reshape(-1, 2) + cut for piece, cut in zip(pieces, cuts, strict=False)]
        return ids, np.concatenate(spans)

    def _forged(self, text: str, authors: np.ndarray) -> list[int]:
        """Where to cut so that no control token with a character of a caller stays whole."""
        cuts = set()
        for match in self._control.finditer(text):
            start, length = match.start(), len(match[1])
            written = authors[start : start + length] != _TEMPLATE
            if written.any():
                cuts.add(start + max(1, int(written.argmax())))
        return sorted(cuts)


def collect_visuals(
    messages: Sequence[Message],
    images: Sequence[ImageSource],
    videos: Sequence[VideoSource],
    placeholders: Sequence[VisualKind],
) -> list[tuple[VisualKind, Any]]:
    """The sources of the image and video parts: each part's own, or the next of `images` or `videos`.

    Args:
        messages: the chat.
        images: sources of the image parts that carry none.
        videos: sources of the video parts that carry none.
        placeholders: `EncodedPrompt.placeholders`, whose order the result has.

    Raises:
        RequestError: more or fewer images or videos than parts that need one, or parts that the template left out.
    """
    sources = {"image": iter(_collect(messages, "image", images)), "video": iter(_collect(messages, "video", videos))}
    found = [(kind, source) for kind in placeholders for source in islice(sources[kind], 1)]
    if len(found) != len(placeholders) or any(list(rest) for rest in sources.values()):
        raise RequestError(
            f"the prompt has {len(placeholders)} placeholders, the messages another number of image and video parts. "
            "Use a bundle whose chat template takes them."
        )
    return found


def _collect(messages: Sequence[Message], kind: VisualKind, given: Sequence[Any]) -> list[Any]:
    """The source of each part of a kind, in their order."""
    parts = [part for message in messages for part in _parts(message) if part.get("type") == kind]
    waiting = sum(kind not in part for part in parts)
    if waiting != len(given):
        raise RequestError(
            f"the messages have {waiting} {kind} parts without a source and the request {len(given)} {kind}s. "
            f"Give as many {kind}s as there are parts."
        )
    remaining = iter(given)
    return [part[kind] if kind in part else next(remaining) for part in parts]


def find_instruction(user_text: np.ndarray, visual_indices: np.ndarray, total_tokens: int) -> tuple[np.ndarray, str]:
    """Which rows of the expanded prompt ask the question.

    Args:
        user_text: `[tokens]` bool, of the prompt before its placeholders were expanded.
        visual_indices: `[visual_tokens]` int64, in the expanded prompt.
        total_tokens: length of the expanded prompt.

    Returns:
        `[instruction_tokens]` int64: the user's text behind the last visual token, or all that stands there where the user
        wrote nothing; and a note that says so, else empty.
    """
    if not len(visual_indices):
        return np.empty(0, np.int64), ""
    after = visual_indices[-1] + 1
    indices = np.flatnonzero(user_text) + (total_tokens - len(user_text))  # behind the last image the shift is the same
    indices = indices[indices >= after]
    if len(indices):
        return indices, ""
    return np.arange(after, total_tokens), "no user text follows the last image, so every token after it was the instruction"


class _Markers:
    """Stand-ins for what callers wrote. Surrounding whitespace stays, so that a template's `trim` works as ever."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._texts: list[tuple[str, int]] = []

    def hide(self, text: str, author: int) -> str:
        _check_text(text)
        core = text.strip()
        if not core:
            return text
        self._texts.append((core, author))
        start = text.index(core)
        return f"{text[:start]}\ue000{self._nonce}:{len(self._texts) - 1}\ue000{text[start + len(core) :]}"

    def resolve(self, rendered: str) -> list[tuple[str, int]]:
        """The rendered prompt in parts, each with its author."""
        pieces = re.split(f"\ue000{self._nonce}:(\\d+)\ue000", rendered)
        return [self._texts[int(piece)] if odd % 2 else (piece, _TEMPLATE) for odd, piece in enumerate(pieces)]


def _read_message(message: Message, markers: _Markers) -> dict[str, Any]:
    """A message as the template gets it: known keys only, texts hidden behind markers, images and videos without source."""
    if not isinstance(message, Mapping) or set(message) != {"role", "content"} or message["role"] not in ROLES:
        raise RequestError(
            f"a message is {_short(message)}, expected a role ({', '.join(ROLES)}) and a content, nothing else. Fix it."
        )
    author = _USER if message["role"] == "user" else _CALLER
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": markers.hide(content, author)}
    return {"role": message["role"], "content": [_read_part(part, author, markers) for part in _parts(message)]}


def _read_part(part: Mapping[str, Any], author: int, markers: _Markers) -> dict[str, str]:
    for kind in KINDS:
        if part.get("type") == kind and set(part) <= {"type", kind}:
            return {"type": kind}
    if part.get("type") == "text" and set(part) == {"type", "text"} and isinstance(part["text"], str):
        return {"type": "text", "text": markers.hide(part["text"], author)}
    raise RequestError(
        f"a part of a message is {_short(part)}, expected {{'type': 'text', 'text': ...}}, {{'type': 'image'}} or "
        "{'type': 'video'}. Links are not read: load what they point to first."
    )


def _parts(message: Message) -> Sequence[Mapping[str, Any]]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return ()
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise RequestError(f"the content of a message is {_short(content)}, expected a string or a list of parts. Fix it.")
    return content


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text of a message is not Unicode text: {error}. Send whole characters.") from error


def _short(value: object) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def _any_in(flags: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """`[spans]` bool: whether any flag within the span `[start, end)` is set."""
    before = np.concatenate([[0], np.cumsum(flags)])
    found: np.ndarray = before[spans[:, 1]] > before[spans[:, 0]]
    return found


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise BundleError(f"the bundle's tokenizer has no token '{token}' for images or videos. Export the bundle again.")
    return int(token_id)


def _compile(source: str) -> jinja2.Template:
    """The template as transformers compiles it: sandboxed, blocks leave no whitespace."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BundleError(f"the bundle's chat template is not valid: {error}. Export the bundle again.") from error


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the assistant wrote, for training; here its body is all there is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as of an instance)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

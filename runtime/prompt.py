"""Messages to token ids: chat template, tokens, and which of them are the user's instruction.

What a caller writes is data. It is known for every character of the prompt whether the template or a caller wrote it
(`authorship`), so a caller's `<|image_pad|>` stays thirteen characters of text. Every text of the messages stands in the
prompt, whole or the part that the template takes of it; one of which nothing is left is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from typing import Any, get_args

import numpy as np
from tokenizers import Encoding, Tokenizer

from foveate.engines import BundleError, PromptEntry, RequestError
from foveate.engines.errors import reason_of, shown
from foveate.runtime.authorship import Authored, Origin, plain
from foveate.runtime.images import ImageSource
from foveate.runtime.template import ChatTemplate
from foveate.runtime.types import Message, VisualKind
from foveate.runtime.video import VideoSource

ROLES = ("system", "user", "assistant", "tool")
KINDS: tuple[VisualKind, ...] = get_args(VisualKind)

_TEMPLATE, _CALLER, _USER = 0, 1, 2  # who wrote a character
_ANCHOR = "\n"


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

    What the tokenizer's post-processor adds goes around the prompt, as with transformers' processors: unless the prompt
    begins with `bos_token` already. Its `truncation` and `padding` are left over from training, and no part of a prompt.

    Args:
        entry: the manifest's `prompt`.
        tokenizer: the bundle's tokenizer.

    Raises:
        BundleError: the chat template is not valid, or the tokenizer lacks a placeholder.
    """

    def __init__(self, entry: PromptEntry, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer = _without_limits(tokenizer)
        self._named: dict[str, str] = {str(name): text for name, text in entry.template_tokens.items()}
        special = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        tokens: dict[VisualKind, str | None] = {"image": entry.image_token, "video": entry.video_token}
        self._tokens = {kind: token for kind, token in tokens.items() if token}
        self._placeholders = {_token_id(tokenizer, token): kind for kind, token in self._tokens.items()}
        special |= {id: self._tokens[kind] for id, kind in self._placeholders.items()}
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._control = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")  # a lookahead finds overlaps too
        self._control_ids = np.array(sorted(special), np.int64)
        self._template = ChatTemplate(entry.chat_template, self._control)
        self._before, self._behind = _added_around(tokenizer)
        # A template that names no token may write out what the tokenizer would add.
        written_out = "" if self._named else "".join(tokenizer.id_to_token(id) or "" for id in self._before)
        self._bos = self._named.get("bos_token", written_out)
        self._anchor_ids = tokenizer.encode(_ANCHOR, add_special_tokens=False).ids

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids of a chat, with the turn of the assistant opened.

        Raises:
            RequestError: messages that are not in the chat form, that the template refuses or leaves out, or whose text would
                become a control token; or a video where the model takes none.
        """
        chat = [_read_message(message) for message in _read_messages(messages)]
        self._check_kinds(chat)
        text, authors = self._render(chat)
        ids, spans = self._tokenize(text, authors)
        if (_any_in(authors != _TEMPLATE, spans) & np.isin(ids, self._control_ids)).any():
            raise RequestError("the text of a message would become a control token of the model. Remove it from the text.")
        placeholders = tuple(self._placeholders[id] for id in ids.tolist() if id in self._placeholders)
        if len(self._placeholders) < len(self._tokens):  # one token for both: the template keeps the order of the parts
            placeholders = tuple(kind for message in chat for part in _parts(message) for kind in KINDS if part["type"] == kind)
        before, behind = ([], []) if self._names_bos(text, authors) else (self._before, self._behind)
        user_text = np.pad(_any_in(authors == _USER, spans), (len(before), len(behind)))
        return EncodedPrompt(np.array([*before, *ids, *behind], np.int64), user_text, placeholders)

    def encode_raw(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids of the text of the one message, without a chat template. What looks like a control token is plain text.

        Raises:
            RequestError: there is another message, a part that is no text, or text that would become a control token.
        """
        chat = [_read_message(message) for message in _read_messages(messages)]
        if len(chat) != 1 or not isinstance(chat[0]["content"], str):
            raise RequestError(f"raw is set beside {shown(messages)}, expected one message with a text. Leave raw out.")
        text = chat[0]["content"]
        ids, spans = self._tokenize(text, np.full(len(text), _USER))
        if np.isin(ids, self._control_ids).any():
            raise RequestError("the text would become a control token of the model. Remove it from the text.")
        around = (len(self._before), len(self._behind))
        written = np.pad(np.ones(len(spans), bool), around)
        return EncodedPrompt(np.array([*self._before, *ids, *self._behind], np.int64), written, ())

    def _check_kinds(self, chat: Sequence[Message]) -> None:
        for kind in KINDS:
            if kind not in self._tokens and any(part["type"] == kind for message in chat for part in _parts(message)):
                raise RequestError(f"the messages have a part of type '{kind}', which this model does not take. Leave it out.")

    def _names_bos(self, text: str, authors: np.ndarray) -> bool:
        """Whether the prompt begins with a BOS of the template's own."""
        return bool(self._bos) and text.startswith(self._bos) and not authors[: len(self._bos)].any()

    def _render(self, chat: Sequence[Message]) -> tuple[str, np.ndarray]:
        """The prompt as text, and who wrote each of its characters.

        Some templates take a content as a string, some as a list of parts, most as either. What a template fails at or leaves
        out in the form that it was given in is tried in the other one.
        """
        given = self._attempt(chat)
        forms = [[*map(_as_string, chat)], [*map(_as_parts, chat)]]
        if given.lost:
            forms.insert(0, [_in_other_form(m) if number in given.lost else m for number, m in enumerate(chat)])
        attempts = (self._attempt(form) for form in forms if form != chat)
        done = given if given.rendered else next((attempt for attempt in attempts if attempt.rendered), given)
        if done.rendered is None:
            raise done.problem
        self._check_control_tokens(done.rendered)
        return plain(done.rendered), done.authors()

    def _attempt(self, chat: Sequence[Message]) -> _Attempt:
        texts = _Texts()
        authored = [texts.add_message(message, number) for number, message in enumerate(chat)]
        try:
            rendered = self._template.render(authored, self._named)
        except RequestError as error:
            return _Attempt(texts, None, error)
        lost = texts.missing(rendered)
        if not lost:
            return _Attempt(texts, rendered, RequestError())
        number = min(lost)
        problem = RequestError(
            f"the bundle's chat template leaves out the text of message {number + 1}, of the role '{chat[number]['role']}'. "
            "Put it into another message, or leave it out."
        )
        return _Attempt(texts, None, problem, lost)

    def _check_control_tokens(self, rendered: Authored) -> None:
        """Refuses a control token in a place where a caller may have written it as well as the template."""
        for match in self._control.finditer(plain(rendered)):
            token, start = match[1], match.start()
            if not all(origin.sure for origin in rendered.origins[start : start + len(token)]):
                raise RequestError(
                    f"the bundle's chat template mixes {token} with a message's text in a way that hides who wrote it. "
                    "Take control tokens out of the text, or use a simpler chat template."
                )

    def _tokenize(self, text: str, authors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, and the span of characters `[tokens, 2]` of each.

        The text is cut inside each control token that a caller wrote any part of: its pieces are ordinary text.
        """
        cuts = [0, *self._forged(text, authors), len(text)]
        pieces = [self._encode_piece(text[a:b], a > 0) for a, b in pairwise(cuts)]
        ids = np.array([id for piece, _ in pieces for id in piece], np.int64)
        return ids, np.concatenate([spans + cut for (_, spans), cut in zip(pieces, cuts, strict=False)])

    def _encode_piece(self, text: str, inside: bool) -> tuple[list[int], np.ndarray]:
        """Token ids and spans of a piece of the prompt. Inside of it a piece gets no mark of a text's start, which it would
        have alone: it is encoded behind an anchor, as transformers does it."""
        anchored = self._encode(_ANCHOR + text) if inside else None
        count = len(self._anchor_ids)
        if anchored and anchored.ids[:count] == self._anchor_ids:
            return anchored.ids[count:], np.array(anchored.offsets[count:], np.int64).reshape(-1, 2) - len(_ANCHOR)
        alone = self._encode(text)
        return alone.ids, np.array(alone.offsets, np.int64).reshape(-1, 2)

    def _encode(self, text: str) -> Encoding:
        """As a batch of one: other threads go on meanwhile, which `encode` lets none do."""
        return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]

    def _forged(self, text: str, authors: np.ndarray) -> list[int]:
        """Where to cut so that no control token with a character of a caller stays whole."""
        cuts = set()
        for match in self._control.finditer(text):
            start, length = match.start(), len(match[1])
            written = authors[start : start + length] != _TEMPLATE
            if written.any():
                cuts.add(start + max(1, int(written.argmax())))
        return sorted(cuts)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """What the template made of the messages in one form: the prompt, or a problem and the messages whose text was lost."""

    texts: _Texts
    rendered: Authored | None
    problem: RequestError
    lost: frozenset[int] = frozenset()

    def authors(self) -> np.ndarray:
        """Who wrote each character of the prompt."""
        assert self.rendered is not None
        runs = [(self.texts.author(origin), len(list(group))) for origin, group in groupby(self.rendered.origins)]
        return np.repeat([author for author, _ in runs], [length for _, length in runs]).astype(np.int64)


class _Texts:
    """The texts of a chat: who wrote each, in which message."""

    def __init__(self) -> None:
        self._authors: list[int] = []
        self._messages: list[int] = []
        self._due: set[int] = set()

    def add_message(self, message: Message, number: int) -> dict[str, Any]:
        """The message with texts that know their origin."""
        author = _USER if message["role"] == "user" else _CALLER
        content = message["content"]
        if isinstance(content, str):
            return {**message, "content": self._add(content, author, number)}
        parts = [part | {"text": self._add(part["text"], author, number)} if "text" in part else dict(part) for part in content]
        return {**message, "content": parts}

    def _add(self, text: str, author: int, number: int) -> Authored:
        index = len(self._authors)
        self._authors.append(author)
        self._messages.append(number)
        if text.strip():
            self._due.add(index)
        return Authored.of(text, Origin(frozenset({index})))

    def author(self, origin: Origin) -> int:
        """Of a character; the user's, where it was made of several texts and one is a user's."""
        return max((self._authors[text] for text in origin.texts), default=_TEMPLATE)

    def missing(self, rendered: Authored) -> frozenset[int]:
        """The messages with a text of which the prompt has no visible character."""
        stands = set[int]()
        for origin, group in groupby(zip(plain(rendered), rendered.origins, strict=True), key=lambda pair: pair[1]):
            if origin.texts - stands and not origin.listed and any(not character.isspace() for character, _ in group):
                stands |= origin.texts
        return frozenset(self._messages[text] for text in self._due - stands)


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
    parts = [part for message in _read_messages(messages) for part in _parts(message) if part.get("type") == kind]
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


def _read_messages(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(
            f"the messages are {shown(messages)}, expected a list of them: [{{'role': 'user', 'content': 'What is this?'}}]."
        )
    if not messages:
        raise RequestError("the request has no messages, expected at least one of a user. Add the question.")
    return messages


def _read_message(message: Message) -> dict[str, Any]:
    """A message as the template gets it: known keys only, plain texts, images and videos without source."""
    given = _without_none(message)
    if set(given) != {"role", "content"} or not isinstance(given["role"], str) or given["role"] not in ROLES:
        raise RequestError(
            f"a message is {shown(message)}, expected a role ({', '.join(ROLES)}) and a content, nothing else. Fix it."
        )
    content = given["content"]
    read = _read_text(content) if isinstance(content, str) else [_read_part(part) for part in _parts(given)]
    return {"role": plain(given["role"]), "content": read}


def _read_part(part: Mapping[str, Any]) -> dict[str, str]:
    for kind in KINDS:
        if part.get("type") == kind and set(part) <= {"type", kind}:
            return {"type": kind}
    if part.get("type") == "text" and set(part) == {"type", "text"} and isinstance(part["text"], str):
        return {"type": "text", "text": _read_text(part["text"])}
    raise RequestError(
        f"a part of a message is {shown(part)}, expected {{'type': 'text', 'text': ...}}, {{'type': 'image'}} or "
        "{'type': 'video'}. Links are not read: load what they point to first."
    )


def _parts(message: Message) -> Sequence[Mapping[str, Any]]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return ()
    if (
        isinstance(content, bytes)
        or not isinstance(content, Sequence)
        or not all(isinstance(part, Mapping) for part in content)
    ):
        raise RequestError(f"the content of a message is {shown(content)}, expected a string or a list of parts. Fix it.")
    return [_without_none(part) for part in content]


def _without_none(value: Any) -> dict[str, Any]:
    """A message or a part without what is None in it, as tables and clients fill in keys that others have."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else {}


def _as_parts(message: Message) -> Message:
    """The message with its string as the one part of a list."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _as_string(message: Message) -> Message:
    """The message with its one part as a string, if that is a text."""
    content = message["content"]
    alone = len(content) == 1 and not isinstance(content, str) and "text" in content[0]
    return {**message, "content": content[0]["text"]} if alone else message


def _in_other_form(message: Message) -> Message:
    return _as_parts(message) if isinstance(message["content"], str) else _as_string(message)


def _read_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the text of a message is not Unicode text: {reason_of(error)}. Send whole characters.") from error
    return plain(text)


def _any_in(flags: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """`[spans]` bool: whether any flag within the span `[start, end)` is set."""
    before = np.concatenate([[0], np.cumsum(flags)])
    found: np.ndarray = before[spans[:, 1]] > before[spans[:, 0]]
    return found


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without truncation and padding; a copy, where it has any."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _added_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer's post-processor puts before a text and behind it."""
    alone, around = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    for start in range(len(around) - len(alone) + 1):
        if around[start : start + len(alone)] == alone:
            return around[:start], around[start + len(alone) :]
    raise BundleError(
        "the post_processor of the bundle's tokenizer changes the tokens of a text, expected one that adds some before and "
        "behind it. Export another checkpoint."
    )


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise BundleError(f"the bundle's tokenizer has no token '{token}' for images or videos. Export the bundle again.")
    return int(token_id)

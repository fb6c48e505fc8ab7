"""JSON by construction: what `response_format` asks for, as grammars that hold an answer token by token."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines import BundleError, RequestError
from foveate.engines.errors import reason_of, shown
from foveate.engines.system.packages import needed_package
from foveate.runtime import Grammar

MOST_BYTES = 65_536
"""Of a schema as JSON."""
MOST_DEPTH = 32
"""Of arrays and objects within each other in a schema."""
MOST_PARTS = 1_000
"""Schemas within a schema: what compiling takes grows with the square of the properties of one object."""
MOST_KEPT = 64
"""Compiled grammars that are kept for the next request."""
LIMITS: dict[str, Any] = {"max_lexer_states": 20_000, "max_grammar_size": 200_000, "verbose_errors": False}
"""Of one grammar while it is compiled and followed; about 2 kB a state. The library's own limits of time stay as they are."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between the parts of JSON: a line and its indentation, but no endless blanks."""

_SCHEMA = {"items", "additionalProperties"}
_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
_VALUES = {"type", "enum", "const", "$ref", "required", "pattern", "format", "minLength", "maxLength", "minItems", "maxItems"}
_VALUES |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minProperties", "maxProperties"}
_NOTES = {"$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated"}
_NOTES |= {"readOnly", "writeOnly"}
FOLLOWED = frozenset(_SCHEMA | _SCHEMAS | _NAMED | _VALUES | _NOTES)
"""Keywords of JSON Schema 2020-12 that are followed, or that say nothing about what is valid."""
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


class Grammars:
    """Grammars for the vocabulary of one bundle; threads may share it.

    Args:
        tokenizer_file: the bundle's `tokenizer.json`.
        vocab_size: of the model, which may have more tokens than its tokenizer.
        eos_token_ids: tokens that end an answer.

    Raises:
        BundleError: llguidance can't read the tokenizer.
        MissingPackageError: llguidance is not installed.
    """

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        with needed_package("it holds answers to a JSON schema", "serve"):
            import llguidance
        text = tokenizer_file.read_text(encoding="utf-8")
        size = max(vocab_size, 1 + max(_ids(json.loads(text))))
        try:
            self._tokenizer = llguidance.LLTokenizer(text, n_vocab=size, eos_token=list(eos_token_ids))
        except Exception as error:  # a bare ValueError, or what its Rust code panicked with
            fact = f"llguidance can't read {tokenizer_file}: {reason_of(error)}"
            raise BundleError(f"{fact}. Ask for text in place of JSON.") from error
        self._matcher = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(**LIMITS)
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that a schema of JSON Schema 2020-12 holds valid, keys in the order of `properties`.

        Raises:
            RequestError: the schema is none, too large, allows nothing, or has a keyword that is not followed, which is named.
        """
        text = check_schema(schema)
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        made = self._compile(text)  # outside of the lock: a large one keeps nobody waiting
        with self._lock:
            self._kept[text] = made
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return made

    def _compile(self, text: str) -> Grammar:
        matcher = self._matcher
        try:
            grammar = matcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE, "lenient": False})
        except ValueError as error:  # a number that it does not hold
            raise _refused(f"the schema can't be followed: {reason_of(error)}", "Change it there.") from error
        made = matcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        complaints = [made.get_error()] if made.is_error() else made.get_grammar_warnings()
        if complaints:
            raise _refused(f"the schema can't be followed: {reason_of(ValueError(complaints[0]))}", "Change it there.")
        return _JsonGrammar(made, self._tokenizer.vocab_size)


@dataclass(frozen=True, eq=False)
class _JsonGrammar:
    matcher: Any
    vocab_size: int

    def start(self) -> _JsonState:
        return _JsonState(self.matcher.deep_copy(), np.zeros((self.vocab_size + 31) // 32, np.uint32))


@dataclass(eq=False)
class _JsonState:
    """The library's matcher of one answer, and room for its mask: a bit for each token."""

    matcher: Any
    bits: np.ndarray

    @property
    def finished(self) -> bool:
        return bool(self.matcher.is_stopped()) and not self.matcher.is_error()

    def mask(self, logits: np.ndarray) -> None:
        self.matcher.unsafe_compute_mask_ptr(self.bits.ctypes.data, self.bits.nbytes)
        self._check()
        allowed = np.unpackbits(self.bits.view(np.uint8), count=len(logits), bitorder="little")
        logits[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        self.matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            reason = reason_of(ValueError(self.matcher.get_error()))
            raise _refused(f"the schema became too costly to follow: {reason}", "Make it simpler, above all its patterns.")


def check_schema(schema: object) -> str:
    """The schema as JSON.

    Raises:
        RequestError: see `Grammars.json_schema`.
    """
    if not isinstance(schema, Mapping):
        raise _refused(f"the schema is {shown(schema)}, expected a JSON object", "Give a JSON Schema.")
    if _depth_above(schema, MOST_DEPTH):
        raise _refused(f"the schema is more than {MOST_DEPTH} levels deep", "Make it flatter, with $defs and $ref.")
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise _refused(f"the schema is no JSON: {reason_of(error)}", "Give a JSON Schema.") from error
    if size > MOST_BYTES:
        raise _refused(f"the schema has {size} bytes, the limit is {MOST_BYTES}", "Make it smaller.")
    parts = 0
    for parts, (where, part) in enumerate(_parts("#", schema), 1):
        if parts > MOST_PARTS:
            raise _refused(f"the schema has more than {MOST_PARTS} parts", "Make it smaller, with $defs and $ref.")
        _check_part(where, part)
    return text


def _check_part(where: str, part: object) -> None:
    if isinstance(part, bool):
        return
    if not isinstance(part, Mapping):
        remedy = (
            "Use prefixItems for the first items of an array." if isinstance(part, list) else "Give an object, true or false."
        )
        raise _refused(f"the schema has {shown(part)} at {where}, expected a schema", remedy)
    if odd := [name for name in part if name not in FOLLOWED]:
        raise _refused(f"the schema has {shown(odd[0])} at {where}, which is not followed", "Take it out.")
    for name in _NUMBERS:
        if name in part and (isinstance(part[name], bool) or not isinstance(part[name], int | float)):
            raise _refused(f"the schema has {shown(part[name])} at {where}/{name}, expected a number", "Give one.")


def _parts(where: str, part: object) -> Iterator[tuple[str, object]]:
    """The schemas within a schema and itself, each with where it is."""
    yield where, part
    if not isinstance(part, Mapping):
        return
    for name, value in part.items():
        if name in _SCHEMA:
            yield from _parts(f"{where}/{name}", value)
        elif name in _SCHEMAS and isinstance(value, Sequence) and not isinstance(value, str):
            for index, inner in enumerate(value):
                yield from _parts(f"{where}/{name}/{index}", inner)
        elif name in _NAMED and isinstance(value, Mapping):
            for key, inner in value.items():
                yield from _parts(f"{where}/{name}/{key}", inner)


def _depth_above(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [inner for one in level for inner in _children(one)]
        if not level:
            return False
    return True


def _children(value: object) -> Sequence[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()


def _ids(tokenizer: Mapping[str, Any]) -> Iterator[int]:
    """Of all tokens of a `tokenizer.json`."""
    vocab = tokenizer["model"]["vocab"]
    yield from vocab.values() if isinstance(vocab, Mapping) else range(len(vocab))
    yield from (token["id"] for token in tokenizer.get("added_tokens", ()))


def _refused(fact: str, remedy: str) -> RequestError:
    return RequestError(f"{fact}. {remedy}")

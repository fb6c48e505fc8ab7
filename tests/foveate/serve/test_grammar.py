"""Grammars of JSON schemas: whatever is drawn under their masks is JSON that the schema holds valid, in every vocabulary."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from tokenizers import Tokenizer

from foveate.engines import BundleError, RequestError, SessionOptions
from foveate.runtime import Request, Sampling, load
from foveate.runtime.pipeline import TOKENIZER
from foveate.serve import grammar as module
from foveate.serve.grammar import MOST_BYTES, MOST_DEPTH, MOST_KEPT, MOST_PARTS, Grammars
from models.downloads import LLAMA_2, LLAMA_3, QWEN
from models.scenes.checkpoint import build_tokenizer
from tests.downloads import npm_file
from tests.tiny_llava_llama import llama_3_tokenizer, vicuna_tokenizer

TEXT, NUMBER, WHOLE = {"type": "string", "maxLength": 8}, {"type": "number"}, {"type": "integer"}


def thing(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {"type": "object"},
    "anything": {},
    "nested": thing(
        a=thing(b=thing(c=TEXT, d=NUMBER)), e={"type": "array", "items": thing(f={"type": "boolean"}), "maxItems": 3}
    ),
    "optional": thing(["b"], a=TEXT, b=WHOLE, c={"type": "null"}),
    "enum": thing(a={"enum": ["red", 'quo"te', "café 🦊", "\\", 3, 2.5, None, [1, {"x": "y"}], True]}),
    "const": {"const": {"a": [1, "x\n", None], "": False}},
    "pattern": thing(a={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"}, b={"type": "string", "pattern": "^(ja|nein)$"}),
    "open pattern": thing(a={"type": "string", "pattern": "ab", "maxLength": 12}),
    "anyOf": {"anyOf": [TEXT, thing(kind={"const": 1}, x=WHOLE), {"type": "array", "items": NUMBER, "maxItems": 2}]},
    "several types": thing(a={"type": ["string", "null", "integer"], "maxLength": 3, "minimum": 5}),
    "oneOf of kinds": {"oneOf": [thing(kind={"const": "a"}, x=TEXT), thing(kind={"const": "b"}, y=WHOLE)]},
    "allOf": {
        "allOf": [{"type": "object", "properties": {"a": WHOLE}, "required": ["a"]}, {"properties": {"a": {"minimum": 3}}}]
    },
    "$ref": {"$defs": {"point": thing(x=WHOLE, y=WHOLE)}, **thing(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"})},
    "recursive": {"$defs": {"tree": thing(["v"], v=WHOLE, next={"$ref": "#/$defs/tree"})}, "$ref": "#/$defs/tree"},
    "whole range": thing(a={"type": "integer", "minimum": -17, "maximum": 23}, b={"type": "integer", "exclusiveMinimum": 5}),
    "number range": thing(a={"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}, b={"type": "number", "maximum": -3}),
    "multiple": thing(a={"type": "integer", "multipleOf": 7}, b={"type": "integer", "multipleOf": 4, "minimum": 9}),
    "lengths": thing(
        a={"type": "string", "minLength": 2, "maxLength": 4}, b={"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 4}
    ),
    "tuple": {"type": "array", "prefixItems": [TEXT, WHOLE], "items": False, "minItems": 2},
    "tuple and more": {"type": "array", "prefixItems": [TEXT], "items": WHOLE, "minItems": 1, "maxItems": 4},
    "other properties": {"type": "object", "properties": {"a": TEXT}, "required": ["a"], "additionalProperties": WHOLE},
    "named by a pattern": {"type": "object", "patternProperties": {"^x_": WHOLE}, "additionalProperties": False},
    "how many": {"type": "object", "additionalProperties": WHOLE, "minProperties": 1, "maxProperties": 3},
    "formats": thing(
        a={"type": "string", "format": "date"}, b={"type": "string", "format": "ipv4"}, c={"type": "string", "format": "uuid"}
    ),
    "odd names": thing(**{'quo"te': WHOLE, "ключ": WHOLE, "": WHOLE, "a b\n": WHOLE}),
    "notes": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "d",
        **thing(a={**TEXT, "default": ""}),
    },
}
NOT_FOLLOWED = [
    *[
        "not",
        "if",
        "then",
        "else",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "dependentRequired",
    ],
    *["dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems", "additionalItems", "$dynamicRef"],
    *["$recursiveRef", "contentEncoding", "nullable", "discriminator", "x-guidance", "strict", "minlength"],
]
VOCABULARIES = ("scenes", "tiny_llama_3", "tiny_vicuna", "qwen", "llama_3", "llama_2")


def tokenizer_of(name: str) -> Tokenizer:
    made = {"scenes": build_tokenizer, "tiny_llama_3": llama_3_tokenizer, "tiny_vicuna": vicuna_tokenizer}
    if name in made:
        return made[name]()
    return Tokenizer.from_file(str(npm_file({"qwen": QWEN, "llama_3": LLAMA_3, "llama_2": LLAMA_2}[name])))


ENDS = {"scenes": "<|im_end|>", "qwen": "<|im_end|>", "llama_3": "<|eot_id|>", "tiny_llama_3": "<|eot_id|>"}


class Vocabulary:
    """A tokenizer, and grammars for a model that has some more tokens than it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tokenizer = tokenizer_of(name)
        file = folder / f"{name}.json"
        file.write_text(self.tokenizer.to_str(), encoding="utf-8")
        self.size = self.tokenizer.get_vocab_size()
        self.eos = self.tokenizer.token_to_id(ENDS.get(name, "</s>"))
        self.grammars = Grammars(file, self.size + 70, [self.eos])
        texts = self.tokenizer.decode_batch([[token] for token in range(self.size)])
        self.closing = [token for token, text in enumerate(texts) if text.strip() and not text.strip('"}] \n')]

    def draw(self, schema: dict[str, Any], seed: int, wild_tokens: int = 60, most_tokens: int = 1_500) -> str | None:
        """Text of tokens drawn at random from what the mask leaves: anything first, then rather what closes something. None
        where it came to no end."""
        generator, state, tokens = np.random.default_rng(seed), self.grammars.json_schema(schema).start(), list[int]()
        while not state.finished:
            logits = generator.gumbel(size=self.size + 70).astype(np.float32)
            if len(tokens) > wild_tokens:
                logits[self.closing] += 20
                logits[self.eos] += 40
            state.mask(logits)
            token = int(np.argmax(logits))
            assert logits[token] > -np.inf
            assert token < self.size
            state.accept(token)
            if token == self.eos:
                break
            tokens.append(token)
            if len(tokens) == most_tokens:
                return None
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary(request.param, tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary("scenes", tmp_path_factory.mktemp("scene"))


def check(text: str, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_drawn_is_valid(name: str, vocabulary: Vocabulary) -> None:
    texts = [vocabulary.draw(SCHEMAS[name], seed) for seed in range(3)]
    ended = [text for text in texts if text is not None]
    assert ended
    for text in ended:
        check(text, SCHEMAS[name])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SCHEMAS)), st.integers(0, 2**32), st.integers(0, 120))
def test_whatever_is_drawn_is_valid_often(scene: Vocabulary, name: str, seed: int, wild_tokens: int) -> None:
    text = scene.draw(SCHEMAS[name], seed, wild_tokens)
    if text is not None:
        check(text, SCHEMAS[name])


def test_without_the_mask_it_is_no_json(scene: Vocabulary) -> None:
    """The tests above can fail."""
    tokens = np.random.default_rng(0).integers(0, scene.size, 50).tolist()
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(scene.tokenizer.decode(tokens))
    with pytest.raises(Exception, match="is not of type"):
        check(scene.draw({"type": "object"}, 0) or "", {"type": "array"})


def test_an_object_is_an_object(vocabulary: Vocabulary) -> None:
    state = vocabulary.grammars.json_object().start()
    logits = np.zeros(vocabulary.size + 70, np.float32)
    state.mask(logits)
    allowed = np.flatnonzero(logits == 0)
    assert allowed.size
    assert vocabulary.eos not in allowed
    assert (allowed < vocabulary.size).all()
    assert all(vocabulary.tokenizer.decode([token]).strip()[:1] in ("{", "") for token in allowed)


def test_the_end_is_allowed_where_the_answer_is_whole(scene: Vocabulary) -> None:
    state = scene.grammars.json_schema({"type": "integer"}).start()
    for digit in "12":
        assert not state.finished
        state.accept(scene.tokenizer.token_to_id(digit))
        logits = np.zeros(scene.size, np.float32)
        state.mask(logits)
        assert logits[scene.eos] == 0
    state.accept(scene.eos)
    assert state.finished


@pytest.mark.parametrize("keyword", NOT_FOLLOWED)
def test_a_keyword_that_is_not_followed_is_refused_by_name(keyword: str, scene: Vocabulary) -> None:
    for schema, where in (
        ({keyword: {}}, "#"),
        (thing(a={"items": {"anyOf": [{keyword: True}]}}), "#/properties/a/items/anyOf/0"),
    ):
        with pytest.raises(RequestError) as caught:
            scene.grammars.json_schema(schema)
        assert f"the schema has '{keyword}' at {where}, which is not followed. Take it out." in str(caught.value)


def test_a_property_may_have_the_name_of_a_keyword(scene: Vocabulary) -> None:
    schema = thing(**{"not": WHOLE, "if": {"const": {"contains": 1}}})
    check(scene.draw(schema, 0) or "", schema)


@pytest.mark.parametrize(
    ("schema", "fact"),
    [
        ([], "the schema is \\[\\], expected a JSON object"),
        ({"type": "zork"}, "Invalid type: zork"),
        ({"type": 3}, "type must be a string"),
        ({"properties": 3}, "properties must be an object"),
        ({"items": [{}]}, r"has \[\{\}\] at #/items, expected a schema\. Use prefixItems"),
        ({"minimum": 1, "exclusiveMinimum": True}, "has True at #/exclusiveMinimum, expected a number"),
        ({"minimum": float("nan")}, "the schema is no JSON"),
        ({"const": object()}, "the schema is no JSON"),
        ({"const": "\ud800"}, "the schema is no JSON"),
        ({"const": 10**400}, "can't be followed"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater than maximum \(3\)"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf constraints are not supported"),
        ({"type": "string", "format": "zork"}, "Unknown format: zork"),
        ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "http://127.0.0.1/x"}, "not present"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"description": "x" * MOST_BYTES}, f"bytes, the limit is {MOST_BYTES}"),
        (thing(**{f"p{number}": {} for number in range(MOST_PARTS + 1)}), f"more than {MOST_PARTS} parts"),
    ],
)
def test_what_can_not_be_followed_is_one_clear_line(schema: Any, fact: str, scene: Vocabulary) -> None:
    with pytest.raises(RequestError, match=fact) as caught:
        scene.grammars.json_schema(schema)
    assert "\n" not in str(caught.value)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_depth(scene: Vocabulary) -> None:
    scene.grammars.json_schema(nested(MOST_DEPTH - 1))
    for levels in (MOST_DEPTH + 1, 10_000):
        with pytest.raises(RequestError, match=f"more than {MOST_DEPTH} levels deep"):
            scene.grammars.json_schema(nested(levels))


HOSTILE: dict[str, dict[str, Any]] = {
    "repetition of repetition": thing(a={"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}),
    "exponential automaton": thing(a={"type": "string", "pattern": "^(.*a.{30}b.*|x[ab]*c.{30})$"}),
    "nested stars": thing(a={"type": "string", "pattern": "^(((a*)*)*)*b$"}),
    "many alternatives": thing(
        a={"type": "string", "pattern": f"^({'|'.join(f'.*{number}.{{9}}x' for number in range(300))})$"}
    ),
    "anyOf of anyOf": {
        "$defs": {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(25)}
        | {"a25": TEXT},
        "$ref": "#/$defs/a0",
    },
    "allOf of allOf": {
        "$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(25)}
        | {"a25": TEXT},
        "$ref": "#/$defs/a0",
    },
    "itself": {"$ref": "#"},
    "all of itself": {"allOf": [{"$ref": "#"}]},
    "as wide as may be": thing(**{f"p{number}": TEXT for number in range(MOST_PARTS - 1)}),
    "long enum": {"enum": [f"v{number}" for number in range(7_000)]},
    "long": {"type": "array", "items": WHOLE, "minItems": 10**9, "maxItems": 10**9},
    "wide counts": {"type": "string", "minLength": 10**6, "maxLength": 10**7},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_soon_in_an_answer_or_words(name: str, scene: Vocabulary) -> None:
    ended = threading.Event()

    def follow() -> str:
        try:
            scene.draw(HOSTILE[name], 0, wild_tokens=30, most_tokens=60)
        except RequestError as error:
            return str(error)
        finally:
            ended.set()
        return ""

    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(follow)
        assert ended.wait(60)
        assert said.result() == "" or said.result().startswith("the schema ")


def test_compiled_grammars_are_kept_and_not_for_ever(scene: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    schemas = [thing(**{f"kept{number}": WHOLE}) for number in range(5)]
    first = scene.grammars.json_schema(schemas[0])
    assert scene.grammars.json_schema(dict(schemas[0])) is first
    for schema in schemas[1:]:
        scene.grammars.json_schema(schema)
    assert len(scene.grammars._kept) == 3
    assert scene.grammars.json_schema(schemas[0]) is not first
    assert MOST_KEPT == 64


def test_order_of_properties_is_part_of_a_grammar(scene: Vocabulary) -> None:
    texts = [scene.draw(thing(**dict.fromkeys(names, WHOLE)), 1) or "" for names in ("ab", "ba")]
    assert [list(json.loads(text)) for text in texts] == [["a", "b"], ["b", "a"]]


def test_answers_have_a_state_each_in_any_thread(scene: Vocabulary) -> None:
    schema = SCHEMAS["nested"]
    alone = [scene.draw(schema, seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: scene.draw(schema, seed), range(40))) == alone


def test_the_answers_of_a_model_are_valid(bundle: Path) -> None:
    """The reference model's, which has never seen JSON."""
    pipe = load(bundle, options=SessionOptions(threads=1))
    prompt = pipe.manifest.prompt
    grammars = Grammars(bundle / TOKENIZER, pipe.manifest.decoder.vocab_size, prompt.eos_token_ids)
    schema = thing(
        colour={"enum": ["red", "purple"]}, sure={"type": "boolean"}, where=thing(x={"type": "integer", "maximum": 99})
    )
    for sampling in (Sampling(), Sampling(temperature=1.5, seed=1)):
        request = Request.ask(
            "What colour is it?", max_new_tokens=400, grammar=grammars.json_schema(schema), sampling=sampling, logprobs=1
        )
        answer = pipe.generate(request)
        if answer.finish_reason != "length":  # a model may write blanks and digits for ever
            check(answer.text, schema)
        assert len(answer.logprobs) == len(answer.tokens)
    held = Request.ask("What colour is it?", max_new_tokens=400, grammar=grammars.json_schema({"enum": ["red", "blue"]}))
    assert json.loads(pipe.generate(held).text) in ("red", "blue")
    pipe.close()


def test_a_tokenizer_that_can_not_be_read(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"model": {"type": "zork", "vocab": {"a": 0}}}))
    with pytest.raises(BundleError, match="llguidance can't read"):
        Grammars(file, 10, [0])

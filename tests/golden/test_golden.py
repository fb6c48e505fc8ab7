"""The golden vectors are what the code says today. Where they are meant to change: `python -m tests.golden.write`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from foveate.exporter.checkpoint import Checkpoint
from foveate.runtime import load
from tests.golden import cases, vectors, write

FAMILIES = list(write.CHECKPOINTS)
TRAINED = sorted({case["checkpoint"] for case in cases.TOKENS} - {write.CHECKPOINTS["llava"]})


def read(name: str) -> Any:
    return json.loads((write.HERE / f"{name}.json").read_text())


def check(document: Any, part: str, compute: Callable[[Any, Any], Any]) -> None:
    for case in document[part]:
        inputs = {key: value for key, value in case.items() if key != "expected"}
        assert compute(document, case) == case["expected"], inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exporter_writes_these_constants(family: str, folder: Path) -> None:
    document = read(family)
    made = write.constants(write.CHECKPOINTS[family], folder)
    assert json.loads(json.dumps(made)) == {name: document[name] for name in ("processor", "prompt")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_that_of_the_bundle(family: str, folder: Path) -> None:
    document = read(family)
    found = Tokenizer.from_file(str(vectors.ROOT / document["tokenizer"]))
    bundled = Checkpoint.open(write.checkpoint(write.CHECKPOINTS[family], folder)).load_tokenizer()
    assert found.get_vocab() == bundled.get_vocab()
    for case in document["prompts"]:
        text = case["expected"].get("text", "")
        assert found.encode(text).ids == bundled.encode(text).ids


@pytest.mark.parametrize("family", FAMILIES)
def test_feeds(family: str) -> None:
    check(read(family), "feeds", vectors.feeds)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts(family: str) -> None:
    check(read(family), "prompts", vectors.prompt)


def test_selections() -> None:
    check(read("selection"), "selections", vectors.selection)


def test_neighbours() -> None:
    check(read("selection"), "neighbours", vectors.neighbours)


@pytest.mark.parametrize("name", TRAINED)
def test_tokens(name: str, trained_bundle: Callable[[str], Path]) -> None:
    check_tokens(name, trained_bundle(Path(name).name))


def test_tokens_of_llava(tiny_llava_bundle: Path) -> None:
    check_tokens(write.CHECKPOINTS["llava"], tiny_llava_bundle)


def check_tokens(checkpoint: str, bundle: Path) -> None:
    pipe = load(bundle)
    answers = [case for case in read("tokens")["answers"] if case["checkpoint"] == checkpoint]
    assert answers
    check({"answers": answers}, "answers", lambda _, case: vectors.tokens(pipe, case))
    pipe.close()


def test_the_bundle_holds_the_constants_of_the_vectors(trained_bundle: Callable[[str], Path]) -> None:
    manifest = json.loads((trained_bundle("qwen2-vl-tiny") / "manifest.json").read_bytes())
    document = read("qwen2_vl")
    assert manifest["processor"] == document["processor"]
    assert manifest["prompt"] == document["prompt"]

"""The manifest's page and its JSON schema: current, and what they say of manifests is what reading says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks.manifest import BEGIN, PAGE, SCHEMA, lines, schema
from benchmarks.pages import write_between
from foveate.engines import Bundle
from foveate.engines.format.bundle import MANIFEST
from foveate.engines.format.seal import KEY
from tests.engines.format.test_manifest import GOLDEN, altered

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    document = json.loads((ROOT / SCHEMA).read_bytes())
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


def test_page_and_schema_are_up_to_date(tmp_path: Path) -> None:
    """`python -m benchmarks.manifest` writes them."""
    page = tmp_path / PAGE.name
    page.write_text((ROOT / PAGE).read_text())
    write_between(page, BEGIN, lines())
    assert page.read_text() == (ROOT / PAGE).read_text()
    assert schema() == (ROOT / SCHEMA).read_bytes()


def test_manifests_are_valid(validator: Draft202012Validator, tiny_bundle: Bundle) -> None:
    validator.validate(json.loads(GOLDEN.read_bytes()))
    validator.validate(json.loads((tiny_bundle.path / MANIFEST).read_bytes()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", 5),
        ("surprise", 1),
        ("decoder.surprise", 1),
        ("decoder.head_dim", 0),
        ("decoder.kv_dtype", "float33"),
        ("graphs.double.precision", "fp16"),
        ("prompt.eos_token_ids", [-1]),
        ("source.sha256", "0" * 63),
        ("scorer.retention", [{"keep": 0.5}]),
    ],
)
def test_what_reading_refuses_the_schema_does(validator: Draft202012Validator, path: str, value: Any) -> None:
    assert not validator.is_valid(json.loads(altered(path, value)))


def test_the_hash_is_part_of_the_file(validator: Draft202012Validator) -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document[KEY]
    assert not validator.is_valid(document)

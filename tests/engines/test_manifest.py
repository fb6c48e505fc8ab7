"""`manifest.json`: its exact bytes, and everything that is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import SCHEMA_VERSION, BundleError, Manifest
from foveate.engines.manifest import decode_manifest, encode_manifest

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"


def altered(path: str, value: Any) -> bytes:
    """The golden manifest with one key set; `path` is dotted."""
    document = json.loads(GOLDEN.read_bytes())
    *parents, key = path.split(".")
    part = document
    for parent in parents:
        part = part[parent]
    part[key] = value
    return json.dumps(document).encode()


def test_golden_bytes(manifest: Manifest) -> None:
    assert encode_manifest(manifest) == GOLDEN.read_bytes()


def test_round_trip(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest), "m") == manifest


def test_files_are_sorted(manifest: Manifest) -> None:
    backwards = msgspec.structs.replace(manifest, files=dict(sorted(manifest.files.items(), reverse=True)))
    assert encode_manifest(backwards) == encode_manifest(manifest)


def test_a_default_may_be_left_out() -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document["prompt"]["max_new_tokens"]
    assert decode_manifest(json.dumps(document).encode(), "m").prompt.max_new_tokens == 64


@pytest.mark.parametrize(("kind", "selector"), [("trained", "learned"), ("attention", "attention")])
def test_an_older_bundle_chooses_as_it_did(kind: str, selector: str) -> None:
    document = json.loads(altered("scorer.kind", kind))
    del document["scorer"]["selector"]
    assert decode_manifest(json.dumps(document).encode(), "m").scorer.default_selector == selector


@pytest.mark.parametrize("where", ["surprise", "source.surprise", "decoder.surprise", "prompt.surprise", "scorer.surprise"])
def test_unknown_key(where: str) -> None:
    with pytest.raises(BundleError, match=r"^m is not a valid manifest: .*unknown field `surprise`.*Export the bundle again"):
        decode_manifest(altered(where, 1), "m")


@pytest.mark.parametrize("key", sorted(set(json.loads(GOLDEN.read_bytes())) - {"schema_version"}))
def test_missing_key(key: str) -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document[key]
    with pytest.raises(BundleError, match=f"missing required field `{key}`"):
        decode_manifest(json.dumps(document).encode(), "m")


@pytest.mark.parametrize("version", [None, 0, SCHEMA_VERSION + 1, str(SCHEMA_VERSION)])
def test_other_schema_version(version: Any) -> None:
    with pytest.raises(BundleError, match=rf"m has schema version {version!r}, this foveate reads {SCHEMA_VERSION}\."):
        decode_manifest(altered("schema_version", version), "m")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("decoder.head_dim", 0),
        ("decoder.num_hidden_layers", "4"),
        ("decoder.position_axes", True),
        ("prompt.pad_token_id", -1),
        ("prompt.eos_token_ids", [-1]),
        ("source.sha256", "0" * 63),
        ("files", {"a": {"sha256": "0" * 64, "size_bytes": -1}}),
        ("graphs", []),
    ],
)
def test_unusable_value(path: str, value: Any) -> None:
    with pytest.raises(BundleError, match="is not a valid manifest"):
        decode_manifest(altered(path, value), "m")


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"[]", b"null", b'{"schema_version": 1', b'{"\xff": 1}', b'{"a":' * 100_000],
    ids=["empty", "text", "list", "null", "cut off", "not utf-8", "too deep"],
)
def test_not_a_manifest(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^m "):
        decode_manifest(data, "m")


@given(st.binary(max_size=8), st.integers(min_value=0), st.integers(0, 8))
def test_damage_never_escapes_as_another_error(noise: bytes, place: int, removed: int) -> None:
    golden = GOLDEN.read_bytes()
    place %= len(golden)
    with suppress(BundleError):
        decode_manifest(golden[:place] + noise + golden[place + removed :], "m")

"""`manifest.json`: its exact bytes, and everything that is refused."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import SCHEMA_VERSION, Bundle, BundleError, GraphSpec, Manifest
from foveate.engines.format.manifest import decode_manifest, encode_manifest
from foveate.engines.format.reseal import reseal
from foveate.engines.format.seal import KEY, seal

GOLDEN = Path(__file__).parent / "golden" / "manifest.json"


def altered(path: str, value: Any) -> bytes:
    """The golden manifest with one key set; `path` is dotted."""
    document = json.loads(GOLDEN.read_bytes())
    *parents, key = path.split(".")
    part = document
    for parent in parents:
        part = part[parent]
    part[key] = value
    return sealed(document)


def sealed(document: dict[str, Any]) -> bytes:
    """With the hash that belongs to it."""
    return seal({key: value for key, value in document.items() if key != KEY})


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
    assert decode_manifest(sealed(document), "m").prompt.max_new_tokens == 64


@pytest.mark.parametrize(
    ("graphs", "text"),
    [
        ({"vision": "int8", "score": "fp32", "decoder": "int8"}, "int8"),
        ({"vision": "int8", "decoder": "int4", "decoder_prefill": "int8"}, "vision int8, decoder int4"),
        ({"double": "fp32"}, "fp32"),
    ],
)
def test_precision_is_told_of_the_parts(manifest: Manifest, graphs: dict[str, str], text: str) -> None:
    specs = {name: GraphSpec(name, f"graphs/{name}.onnx", (), (), precision) for name, precision in graphs.items()}
    assert msgspec.structs.replace(manifest, graphs=specs).precision == text


@pytest.mark.parametrize("where", ["surprise", "source.surprise", "decoder.surprise", "prompt.surprise", "scorer.surprise"])
def test_unknown_key(where: str) -> None:
    with pytest.raises(BundleError, match=r"^m is not a valid manifest: .*unknown field `surprise`.*Export the bundle again"):
        decode_manifest(altered(where, 1), "m")


@pytest.mark.parametrize("key", sorted(set(json.loads(GOLDEN.read_bytes())) - {"schema_version", KEY}))
def test_missing_key(key: str) -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document[key]
    with pytest.raises(BundleError, match=f"missing required field `{key}`"):
        decode_manifest(sealed(document), "m")


@pytest.mark.parametrize("version", [None, 0, SCHEMA_VERSION + 1, str(SCHEMA_VERSION)])
def test_other_schema_version(version: Any) -> None:
    with pytest.raises(BundleError, match=rf"m has schema version {version!r}, this foveate reads {SCHEMA_VERSION}\."):
        decode_manifest(altered("schema_version", version), "m")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("decoder.head_dim", 0),
        ("decoder.head_dim", 2**63),
        ("decoder.num_hidden_layers", 2**31),
        ("decoder.kv_dtype", "float33"),
        ("prompt.max_new_tokens", 2**64),
        ("decoder.num_hidden_layers", "4"),
        ("decoder.position_axes", True),
        ("prompt.pad_token_id", -1),
        ("prompt.eos_token_ids", [-1]),
        ("source.sha256", "0" * 63),
        ("graphs.double.precision", "fp16"),
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
    damaged = golden[:place] + noise + golden[place + removed :]
    with nullcontext() if damaged == golden else pytest.raises(BundleError):
        decode_manifest(damaged, "m")


def test_every_flipped_bit_is_refused() -> None:
    golden = GOLDEN.read_bytes()
    for place, byte in enumerate(golden):
        for bit in range(8):
            with pytest.raises(BundleError):
                decode_manifest(golden[:place] + bytes([byte ^ 1 << bit]) + golden[place + 1 :], "m")


def test_an_edit_by_hand_says_what_to_do_and_that_works(folder: Path, manifest: Manifest) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "family": "llava"}))
    with pytest.raises(BundleError, match=r"was changed after .* run: python -m foveate.engines.format.reseal ") as caught:
        Bundle.open(folder)
    command = shlex.split(str(caught.value).rpartition("run: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert Bundle.open(folder).manifest == msgspec.structs.replace(manifest, family="llava")


def test_a_copy_under_another_name_is_not_resealed(tmp_path: Path) -> None:
    """Its content would be written over `manifest.json`."""
    (tmp_path / "copy.json").write_bytes(GOLDEN.read_bytes())
    with pytest.raises(BundleError, match=r"copy.json is no manifest.json\. Give the path of one"):
        reseal(tmp_path / "copy.json")
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read"), (b"{", "is not JSON"), (b"{}", "has schema version None"), (b"\xff", "is not JSON")],
)
def test_what_can_not_be_sealed(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        reseal(tmp_path / "manifest.json")

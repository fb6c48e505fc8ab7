"""What an engine was built from: digests, and why an engine is not the one that is wanted."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import BackendError
from foveate.engines.builds.store import EngineKey, EngineStore, Entry
from tests.engines.fake_engines import KEY, builds, other

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
option_sets = st.dictionaries(words, values, max_size=4)
hashes = st.integers(0, 16**64 - 1).map(lambda number: f"{number:064x}")
keys = st.builds(EngineKey, words, hashes, st.none() | hashes, words, words, words, option_sets)


def backwards(value: Any) -> Any:
    """The same JSON with every object in the opposite order."""
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@given(keys)
def test_digest_takes_no_notice_of_order_and_survives_the_disk(key: EngineKey) -> None:
    assert len(key.digest()) == 32
    assert set(key.digest()) <= set("0123456789abcdef")
    assert msgspec.structs.replace(key, options=backwards(key.options)).digest() == key.digest()
    assert msgspec.json.decode(msgspec.json.encode(key), type=EngineKey).digest() == key.digest()


@given(keys, keys)
def test_any_changed_field_changes_the_digest(key: EngineKey, changed: EngineKey) -> None:
    for field in EngineKey.__struct_fields__:
        value = getattr(changed, field)
        same = json.dumps(value, sort_keys=True) == json.dumps(getattr(key, field), sort_keys=True)
        assert (msgspec.structs.replace(key, **{field: value}).digest() == key.digest()) == same


def test_digest_is_the_same_in_every_process_and_version() -> None:
    assert KEY.digest() == "f27af9183439fc0e9025912659a91e16"


def test_options_are_copied_and_a_tuple_is_a_list() -> None:
    options = {"shapes": (1, 2)}
    key = other(options=options)
    options["shapes"] = (3,)
    assert key == other(options={"shapes": [1, 2]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, Path("x")])
def test_options_that_are_no_json(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        other(options={"a": value})


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "x.bundle" / "engines")


MISMATCHES = {
    "graph": ({"graph": "vision"}, "there is no engine of graph 'vision'"),
    "graph_sha256": (
        {"graph_sha256": "c" * 64},
        "the engine of graph 'decoder_standard' is stale: the graph of the bundle changed after it was built",
    ),
    "weights_sha256": (
        {"weights_sha256": "c" * 64},
        "the engine of graph 'decoder_standard' is stale: the weights of the bundle changed after it was built",
    ),
    "backend": (
        {"backend": "tensorrt"},
        "the engine of graph 'decoder_standard' was built with tensorrt-rtx, not with TensorRT",
    ),
    "backend_version": (
        {"backend_version": "1.8.0"},
        "the engine of graph 'decoder_standard' was built with TensorRT-RTX 1.7.1, this is TensorRT-RTX 1.8.0",
    ),
    "target": (
        {"target": "sm120"},
        "the engine of graph 'decoder_standard' was built for SM89 with TensorRT-RTX 1.7.1, this device is SM120",
    ),
    "options": (
        {"options": {"precision": "fp16", "strip_weights": True, "optimization_level": 3}},
        "the engine of graph 'decoder_standard' was built with precision bf16, wanted is fp16; "
        "strip_weights null, wanted is true; optimization_level null, wanted is 3",
    ),
}


def find(store: EngineStore, wanted: EngineKey) -> Entry:
    return store.find(wanted, store.folder.parent)


def test_find_needs_only_the_options_that_are_named(store: EngineStore) -> None:
    entry = store.put(KEY, builds())
    for options in ({}, {"precision": "bf16"}, KEY.options):
        assert find(store, other(options=options)) == entry


def test_find_takes_the_most_recently_built(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for seconds, precision in [(300, "fp32"), (500, "bf16"), (400, "fp16")]:
        monkeypatch.setattr("foveate.engines.builds.store.time.time", lambda seconds=seconds: float(seconds))
        built.append(store.put(other(options={"precision": precision}), builds()))
    os.utime(built[1].folder / "engine.json", (1, 1))  # used long ago
    assert find(store, other(options={})) == built[1]
    assert find(store, other(options={"precision": "fp32"})) == built[0]
    assert store.entries() == [built[1], built[2], built[0]]


@pytest.mark.parametrize("field", MISMATCHES)
def test_find_says_why_none_fits(store: EngineStore, field: str) -> None:
    store.put(KEY, builds())
    changes, reason = MISMATCHES[field]
    wanted = other(**({"options": {}} | changes))
    with pytest.raises(BackendError) as caught:
        find(store, wanted)
    command = f"foveate build {store.folder.parent} --backend {wanted.backend} --target {wanted.target}"
    flags = " --precision fp16 --strip-weights --optimization-level 3" if field == "options" else ""
    assert str(caught.value) == f"{reason}. Run: {command}{flags}"


ORDER = ["graph", "graph_sha256", "backend", "backend_version", "target", "options"]


@pytest.mark.parametrize("place", range(5))
def test_the_nearest_engine_tells_the_reason(store: EngineStore, place: int) -> None:
    first, second = (MISMATCHES[field] for field in ORDER[place : place + 2])
    wanted = other(**(first[0] | second[0]))
    store.put(KEY, builds())  # differs in both
    with pytest.raises(BackendError, match=re.escape(first[1])):
        find(store, wanted)
    store.put(other(**first[0]), builds())  # differs in the second only
    with pytest.raises(BackendError) as caught:
        find(store, wanted)
    assert first[1] not in str(caught.value)
    store.put(wanted, builds())
    find(store, wanted)


def test_all_targets_that_were_built_are_told(store: EngineStore) -> None:
    for target in ("sm89", "sm86", "x86-sme"):
        store.put(other(target=target), builds())
    with pytest.raises(BackendError, match=r"built for SM86, SM89, x86-sme with .* this device is SM120"):
        find(store, other(target="sm120"))


def test_an_engine_without_weights_fits_all_weights_but_none_other_does(store: EngineStore) -> None:
    entry = store.put(other(weights_sha256=None), builds())
    assert find(store, KEY) == entry
    shutil.rmtree(entry.folder)
    store.put(KEY, builds())
    with pytest.raises(BackendError, match="stale"):
        find(store, other(weights_sha256=None))


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "my engines")
    with pytest.raises(BackendError) as caught:
        store.find(other(options={"precision": "bf16", "shapes": {}}), Path("my x.bundle"))
    expected = "foveate build 'my x.bundle' --backend tensorrt-rtx --target sm89 --precision bf16"
    assert str(caught.value).endswith(f"Run: {expected} --engines '{store.folder}'")

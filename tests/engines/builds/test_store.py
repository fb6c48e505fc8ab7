"""Built engines on disk: made whole or not at all, checked, bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import BackendError, MachineError, OptionError
from foveate.engines.builds.store import BuildFacts, EngineStore, Entry
from tests.engines.fake_engines import KEY, builds, must_not_build, names, other


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "x.bundle" / "engines")


def test_put_keeps_engine_log_and_facts(store: EngineStore) -> None:
    assert store.get(KEY) is None
    entry = store.put(KEY, builds(b"plan", peak_bytes=7, details={"layers": [1]}))
    assert entry.folder == store.folder / KEY.digest()
    assert (entry.engine.read_bytes(), entry.log.read_text()) == (b"plan", "built")
    record = entry.record
    assert (record.key, record.engine_bytes, record.build_seconds) == (KEY, 4, 2.5)
    assert (record.peak_bytes, record.details) == (7, {"layers": [1]})
    entry.verify()
    assert names(store) == [KEY.digest()]
    assert sorted(path.name for path in entry.folder.iterdir()) == ["build.log", "engine.bin", "engine.json", "verified.json"]
    assert EngineStore(store.folder).get(KEY) == entry == store.entries()[0]
    assert store.damaged() == []


def test_put_builds_once_for_each_key(store: EngineStore) -> None:
    first = store.put(KEY, builds())
    assert store.put(other(options=dict(reversed(KEY.options.items()))), must_not_build) == first
    assert store.put(other(target="sm120"), builds()).folder != first.folder
    assert len(store.entries()) == 2


def test_the_rest_of_the_bundle_stays(store: EngineStore) -> None:
    store.folder.mkdir(parents=True)
    (store.folder.parent / "manifest.json").write_text("{}")
    (store.folder / "notes").mkdir()
    store.max_bytes = 10_000
    store.put(KEY, builds())
    store.prune()
    assert names(store) == [KEY.digest(), "notes"]
    assert store.damaged() == []
    assert (store.folder.parent / "manifest.json").read_text() == "{}"


def test_a_build_without_a_log_has_an_empty_one(store: EngineStore) -> None:
    def build(folder: Path) -> BuildFacts:
        (folder / "engine.bin").write_bytes(b"engine")
        return BuildFacts(1.0)

    assert store.put(KEY, build).log.read_text() == ""


def test_no_store_there(store: EngineStore) -> None:
    assert store.entries() == []
    assert store.damaged() == []
    assert store.prune() == []
    assert not store.folder.exists()


# --- builds that fail


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, PermissionError])
def test_failed_build_leaves_nothing(store: EngineStore, error: type[BaseException]) -> None:
    def build(folder: Path) -> BuildFacts:
        (folder / "engine.bin").write_bytes(b"half")
        raise error

    with pytest.raises(error):
        store.put(KEY, build)
    assert names(store) == []
    store.put(KEY, builds())


@pytest.mark.parametrize("instead", ["nothing", "empty", "link"])
def test_build_without_an_engine(store: EngineStore, instead: str) -> None:
    def build(folder: Path) -> BuildFacts:
        if instead == "empty":
            (folder / "engine.bin").touch()
        if instead == "link":
            (folder / "engine.bin").symlink_to(__file__)
        return BuildFacts(1.0)

    with pytest.raises(BackendError, match=r"tensorrt-rtx 1\.7\.1 built no engine of graph 'decoder_standard'"):
        store.put(KEY, build)
    assert names(store) == []


FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="needs /dev/full")


@needs_full_disk
@pytest.mark.parametrize("file", ["engine.bin", "build.log", "engine.json"])
def test_disk_full(store: EngineStore, file: str) -> None:
    def build(folder: Path) -> BuildFacts:
        (folder / file).symlink_to(FULL_DISK)
        for name in ("engine.bin", "build.log"):
            (folder / name).write_bytes(b"made")
        return BuildFacts(1.0)

    with pytest.raises(MachineError, match=r"^the disk of .* is full"):
        store.put(KEY, build)
    assert names(store) == []


def test_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = EngineStore(tmp_path / "file")
    with pytest.raises(MachineError, match=r"can't be written: .*\. Choose another folder for the engines"):
        store.put(KEY, builds())
    with pytest.raises(MachineError, match=r"can't be read: Not a directory"):
        store.entries()


READER = """
import os, sys
from pathlib import Path
import msgspec
from foveate.engines import MachineError
from foveate.engines.builds.store import BuildFacts, EngineKey, EngineStore

os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)  # the superuser may write everywhere
key = msgspec.json.decode(sys.argv[2], type=EngineKey)
store = EngineStore(Path("engines"), max_bytes=1)
entry = store.find(key, Path("."))
entry.verify()
assert store.entries() == [store.put(key, None)] == [entry]
assert store.damaged() == [] and store.prune() == []
try:
    store.put(msgspec.structs.replace(key, target="sm120"), None)
except MachineError as error:
    print(error)
"""


def test_store_that_can_only_be_read(store: EngineStore) -> None:
    entry = store.put(KEY, builds())
    folders = [entry.folder, store.folder, store.folder.parent]
    for folder in folders:
        folder.chmod(0o555)
    try:
        command = [sys.executable, "-c", READER, str(store.folder.parent), msgspec.json.encode(KEY).decode()]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert result.stderr == ""
    assert result.stdout == "engines can't be written: Permission denied. Choose another folder for the engines.\n"
    assert store.entries() == [entry]


def test_verify_finds_a_cut_and_a_changed_engine_and_put_builds_it_again(store: EngineStore) -> None:
    entry = store.put(KEY, builds(b"engine"))
    for damage in (b"engin", b"engine+", b"enginE"):
        entry.engine.write_bytes(damage)
        assert store.get(KEY) == entry
        with pytest.raises(BackendError, match=r"engine\.bin is missing, was changed or is cut off"):
            entry.verify()
        entry = store.put(KEY, builds(b"engine"))
        entry.verify()
    entry.engine.unlink()
    with pytest.raises(BackendError, match=r"engine\.bin is missing, was changed"):
        entry.verify()
    entry.engine.symlink_to(entry.folder / "moved")
    (entry.folder / "moved").write_bytes(b"engine")
    with pytest.raises(BackendError, match="was changed"):
        entry.verify()


def damage_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / "engine.json").read_bytes())
        change(document)
        (folder / "engine.json").write_text(json.dumps(document))

    return damage


def replace_in_record(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / "engine.json").read_bytes()
        assert old in content
        (folder / "engine.json").write_bytes(content.replace(old, new))

    return damage


def relink(name: str) -> Callable[[Path], None]:
    """Moves a file out of the store and leaves a link to it."""

    def damage(folder: Path) -> None:
        moved = folder.parent.parent / name
        os.replace(folder / name, moved)
        (folder / name).symlink_to(moved)

    return damage


def relink_folder(folder: Path) -> None:
    os.replace(folder, folder.parent.parent / "moved")
    folder.symlink_to(folder.parent.parent / "moved")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda folder: (folder / "engine.json").unlink(), "engine.json can't be read: No such file"),
    "empty record": (lambda folder: (folder / "engine.json").write_bytes(b""), "engine.json is not a valid record"),
    "unknown key": (damage_record(lambda d: d.update(surprise=1)), "unknown field `surprise`"),
    "unknown key of the key": (damage_record(lambda d: d["key"].update(surprise=1)), "unknown field `surprise`"),
    "other version": (damage_record(lambda d: d.update(schema_version=1)), "has schema version 1, this foveate reads 2"),
    "no hash": (damage_record(lambda d: d.update(engine_sha256="../../secret")), "is not a valid record"),
    "other key": (damage_record(lambda d: d["key"].update(target="sm120")), "is the record of another engine"),
    "surrogate": (damage_record(lambda d: d["key"].update(target="\ud800")), "is not a valid record"),
    "NaN": (damage_record(lambda d: d["key"].update(options={"a": float("nan")})), "is not a valid record"),
    "huge": (replace_in_record(b'"bf16"', b"9" * 5000), "is not"),
    "deep": (
        lambda folder: (folder / "engine.json").write_bytes(b'{"schema_version": 1, "key": ' + b"[" * 10**5),
        "not a valid",
    ),
    "too large": (lambda folder: os.truncate(folder / "engine.json", 2**27), "is over 67108864 bytes"),
    "no engine": (lambda folder: (folder / "engine.bin").unlink(), "is a link or holds no engine"),
    "empty engine": (lambda folder: (folder / "engine.bin").write_bytes(b""), "is a link or holds no engine"),
    "linked engine": (relink("engine.bin"), "is a link or holds no engine"),
    "linked record": (relink("engine.json"), "engine.json is not a plain file"),
    "linked log": (relink("build.log"), "build.log is not a plain file"),
    "linked folder": (relink_folder, "is a link or holds no engine"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_listed_left_out_and_built_again(store: EngineStore, case: str) -> None:
    damage, message = DAMAGE[case]
    kept = store.put(other(target="sm120"), builds())
    folder = store.put(KEY, builds()).folder
    damage(folder)
    outside = {
        path: path.read_bytes() for path in store.folder.parent.rglob("*") if path.is_file() and folder not in path.parents
    }
    assert store.entries() == [kept]
    ((path, reason),) = store.damaged()
    assert path == folder
    assert message in reason
    assert store.get(KEY) is None
    with pytest.raises(BackendError, match=r"\(1 damaged left out\)\. Run"):
        store.find(KEY, store.folder.parent)
    entry = store.put(KEY, builds(b"again"))
    assert entry.engine.read_bytes() == b"again"
    assert store.damaged() == []
    assert all(path.read_bytes() == content for path, content in outside.items())


def test_log_may_be_gone(store: EngineStore) -> None:
    entry = store.put(KEY, builds())
    entry.log.unlink()
    assert store.entries() == [entry]


@given(st.binary(max_size=8), st.integers(min_value=0), st.integers(0, 8))
def test_no_damage_of_a_record_crashes_a_listing(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, removed: int
) -> None:
    store = EngineStore(tmp_path_factory.getbasetemp() / "fuzzed")
    record = store.put(KEY, builds()).folder / "engine.json"
    whole = record.read_bytes()
    place %= len(whole)
    record.write_bytes(whole[:place] + noise + whole[place + removed :])
    assert len(store.entries()) + len(store.damaged()) == 1
    record.write_bytes(whole)


@pytest.mark.parametrize("name", ["tmp", "lock"])
def test_links_in_place_of_our_own_files_lead_nowhere(store: EngineStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    store.folder.mkdir(parents=True)
    (store.folder / f".{KEY.digest()}.{name}").symlink_to(tmp_path / "photos")
    with suppress(MachineError):
        store.put(KEY, builds())
    store.prune()
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def last_used(entry: Entry, seconds: int) -> None:
    os.utime(entry.folder / "engine.json", (seconds, seconds))


def filled(store: EngineStore, count: int = 3) -> list[Entry]:
    """Entries of the same size, the first one used least recently."""
    entries = [store.put(other(target=f"sm{80 + i}"), builds(b"e" * 1000)) for i in range(count)]
    for i, entry in enumerate(entries):
        last_used(entry, 1000 + i)
    return entries


def size(entry: Entry) -> int:
    return sum(path.stat().st_size for path in entry.folder.iterdir())


@pytest.mark.parametrize("use", ["get", "find", "put"])
def test_the_least_recently_used_go(store: EngineStore, use: str) -> None:
    first, second, third = filled(store)
    {
        "get": lambda: store.get(first.record.key),
        "find": lambda: store.find(first.record.key, Path("x.bundle")),
        "put": lambda: store.put(first.record.key, must_not_build),
    }[use]()
    store.max_bytes = 3 * size(first) + 100
    new = store.put(other(target="sm90"), builds(b"e" * 1000))
    assert {entry.folder for entry in store.entries()} == {third.folder, first.folder, new.folder}
    assert not second.folder.exists()
    assert names(store) == sorted(entry.folder.name for entry in (first, third, new))


def test_only_as_many_go_as_needed_and_all_files_count(store: EngineStore) -> None:
    first, second, third = filled(store)
    store.max_bytes = size(first) + size(second) + size(third)
    assert store.prune() == []
    store.max_bytes -= 1
    assert store.prune() == [first.folder]
    store.max_bytes = 0
    assert store.prune(protect={second.folder.name}) == [third.folder]
    assert store.entries() == [second]


def test_engines_of_the_same_build_stay(store: EngineStore) -> None:
    first, second, third = filled(store)
    store.max_bytes = 2 * size(first) + 100
    new = store.put(other(target="sm90"), builds(b"e" * 1000), protect={first.folder.name})
    assert {entry.folder for entry in store.entries()} == {first.folder, new.folder}
    assert not second.folder.exists()
    assert not third.folder.exists()


def test_an_engine_that_can_not_fit_replaces_nothing(store: EngineStore) -> None:
    entries = filled(store)
    folders = names(store)
    store.max_bytes = 3 * size(entries[0])
    with pytest.raises(OptionError, match=r"decoder_standard' takes 1\d{4} bytes, all engines in .* may take \d+\. Raise"):
        store.put(other(target="sm90"), builds(b"e" * 10_000))
    protect = {entry.folder.name for entry in entries}
    with pytest.raises(OptionError, match=r" bytes beside \d+ bytes of the same build, all"):
        store.put(other(target="sm90"), builds(b"e" * 1000), protect=protect)
    assert names(store) == folders


def test_damaged_folders_go_first(store: EngineStore) -> None:
    first, _, third = filled(store)
    (third.folder / "engine.json").write_bytes(b"")
    store.max_bytes = 2 * size(first) + 100
    assert store.prune() == [third.folder]

"""Several builders at one store. They are real processes, and some are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from foveate.engines.builds.store import BuildFacts, EngineKey, EngineStore
from tests.engines.fake_engines import KEY, builds, names, other

# Says what it does, and builds on until its standard input has a line.
BUILDER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
import sys
from pathlib import Path
import msgspec
from foveate.engines import BackendError
from foveate.engines.builds.store import BuildFacts, EngineKey, EngineStore

def build(folder):
    (folder / "engine.bin").write_bytes(b"half")
    print("builds", flush=True)
    sys.stdin.readline()
    (folder / "engine.bin").write_bytes(b"engine")
    return BuildFacts(1.0)

key = msgspec.json.decode(sys.argv[2], type=EngineKey)
entry = EngineStore(Path(sys.argv[1])).put(key, build, on_wait=lambda: print("waits", flush=True))
print(entry.record.built_unix_seconds, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "x.bundle" / "engines")


@contextmanager
def builder(store: EngineStore, key: EngineKey = KEY) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", BUILDER, str(store.folder), msgspec.json.encode(key).decode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    """The next line of a builder."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    return line or process.communicate()[1]


def finish(process: subprocess.Popen[str]) -> str:
    """Lets a builder end, gives the rest of what it says."""
    output, errors = process.communicate("\n")
    assert process.returncode == 0, errors
    return output.strip()


def test_two_builders_at_once_build_once(store: EngineStore) -> None:
    with builder(store) as first:
        assert says(first) == "builds"
        with builder(store) as second:
            assert says(second) == "waits"
            assert store.entries() == []
            built = finish(first)
            assert finish(second) == built
    assert [str(entry.record.built_unix_seconds) for entry in store.entries()] == [built]
    assert names(store) == [KEY.digest()]


def test_builders_of_two_keys_do_not_wait_for_each_other(store: EngineStore) -> None:
    with builder(store) as first:
        assert says(first) == "builds"
        assert store.damaged() == []
        store.max_bytes = 10_000
        entry = store.put(other(target="sm120"), builds())
        assert store.entries() == [entry]
        finish(first)
    assert len(store.entries()) == 2


def test_killed_builder_leaves_the_store_usable(store: EngineStore) -> None:
    with builder(store) as first:
        assert says(first) == "builds"
        first.kill()
    half = store.folder / f".{KEY.digest()}.tmp"
    assert (half / "engine.bin").read_bytes() == b"half"
    assert (store.entries(), store.get(KEY)) == ([], None)
    assert store.damaged() == [(half, f"{half} is half-written, its builder was ended")]
    entry = store.put(other(target="sm120"), builds())
    assert names(store) == [entry.folder.name]
    store.put(KEY, builds())
    assert len(store.entries()) == 2


def test_prune_removes_what_a_killed_builder_left(store: EngineStore) -> None:
    with builder(store) as first:
        assert says(first) == "builds"
        assert store.prune() == []
        assert f".{KEY.digest()}.tmp" in names(store)
        first.kill()
        first.wait()
        store.prune()
    assert names(store) == []


def test_who_waits_for_a_builder_that_is_killed_builds(store: EngineStore) -> None:
    with builder(store) as first:
        assert says(first) == "builds"
        with builder(store) as second, builder(store) as third:
            assert {says(second), says(third)} == {"waits"}
            for process in (second, third):  # whichever builds shall not stop
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            first.kill()
            rest = [finish(process).split() for process in (second, third)]
            # One of the two comes first; the other one takes what it made.
            assert sorted(len(words) for words in rest) == [1, 2]
            assert rest[0][-1] == rest[1][-1]
    assert names(store) == [KEY.digest()]
    assert store.entries()[0].engine.read_bytes() == b"engine"


def test_interrupted_builder_leaves_nothing(store: EngineStore) -> None:
    with builder(store) as first:
        assert says(first) == "builds"
        first.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in first.communicate()[1]
    assert names(store) == []


def test_many_builders_and_removers_never_meet(store: EngineStore) -> None:
    """The file of a lock goes with the lock: whoever still waits for it has to take a new one."""
    at_work, clashes, start = [0], [0], threading.Barrier(8)
    bounded = EngineStore(store.folder, max_bytes=0)

    def build(folder: Path) -> BuildFacts:
        at_work[0] += 1
        clashes[0] += at_work[0] > 1
        facts = builds()(folder)
        at_work[0] -= 1
        return facts

    def work() -> None:
        start.wait()
        for _ in range(20):
            store.put(KEY, build)
            bounded.prune()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bounded.prune()  # the last entry stays where another thread had just looked at it
    assert (clashes, at_work, names(store)) == ([0], [0], [])


def test_an_engine_that_is_being_made_again_is_not_removed(store: EngineStore) -> None:
    entry = store.put(KEY, builds())
    entry.engine.write_bytes(b"damage")
    with builder(store) as process:
        assert says(process) == "builds"
        store.max_bytes = 0
        assert store.prune() == []
        assert entry.folder.exists()
        finish(process)
    assert store.prune() == [entry.folder]

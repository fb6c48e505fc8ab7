"""A bundle is written whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foveate.engines import Bundle, BundleError, MachineError, list_files, new_folder, write_manifest
from foveate.engines.format import folders
from foveate.engines.system import rename
from tests.engines.conftest import make_manifest


def write(folder: Path) -> None:
    (folder / "manifest.json").write_text("new")


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new.bundle"
    with new_folder(target) as folder:
        write(folder)
        assert folder.parent == target.parent
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "deep" / "er" / "new.bundle") as folder:  # noqa: PT012
        write(folder)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_old_bundle(folder: Path) -> None:
    with pytest.raises(ValueError, match="broke"), new_folder(folder, overwrite=True) as new:  # noqa: PT012
        write(new)
        raise ValueError("broke")
    Bundle.open(folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_replaces_a_bundle(folder: Path, steps: str) -> None:
    with new_folder(folder, overwrite=True) as new:
        write(new)
        Bundle.open(folder)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert list(folder.parent.iterdir()) == [folder]


def test_replaces_what_a_link_points_to(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    with new_folder(link, overwrite=True) as new:
        write(new)
    assert link.is_symlink()
    assert (folder / "manifest.json").read_text() == "new"


@pytest.fixture(params=["one step", "two steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """In how many a bundle is replaced: two where the system has no renameat2."""
    if request.param == "two steps":
        monkeypatch.setattr(rename, "_renameat2", lambda: None)
    steps: str = request.param
    return steps


def test_keeps_the_old_bundle_when_the_new_one_can_not_move(folder: Path, steps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if steps == "one step":
        monkeypatch.setattr(folders, "exchange", fails_on_call(1, folders.exchange))
    else:
        monkeypatch.setattr(os, "rename", fails_on_call(2, os.rename))
    with pytest.raises(OSError, match="disk"), new_folder(folder, overwrite=True) as new:
        write(new)
    Bundle.open(folder)
    assert list(folder.parent.iterdir()) == [folder]


def fails_on_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1, 100))

    def wrapper(*args: Any) -> Any:
        if next(calls) == number:
            raise OSError("disk")
        return function(*args)

    return wrapper


def test_refuses_to_overwrite(folder: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"exists already\. Choose another folder, or replace it\.$") as caught,
        new_folder(folder),
    ):
        pytest.fail("the block must not run")
    assert caught.value.options == ("overwrite",)


def test_what_appears_meanwhile_stays(tmp_path: Path, steps: str) -> None:
    target = tmp_path / "new.bundle"
    with pytest.raises(BundleError, match="exists already"), new_folder(target) as new:  # noqa: PT012
        write(new)
        target.mkdir()
        (target / "manifest.json").write_text("theirs")
    assert (target / "manifest.json").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_refuses_to_replace_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "notes.txt").touch()
    for name in ("photos", "notes.txt", "."):
        with pytest.raises(BundleError, match="is not a bundle"), new_folder(tmp_path / name, overwrite=True):
            pytest.fail("the block must not run")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="can't be written"), new_folder(tmp_path / "file" / "new.bundle"):
        pytest.fail("the block must not run")


WRITER = """
import os, sys
from pathlib import Path
from foveate.engines import new_folder
from foveate.engines.system import rename

if sys.argv[2] == "killed between two renames":
    rename._renameat2 = lambda: None
    def move(source, target, move=os.rename):
        move(source, target)
        os.kill(os.getpid(), 9)
    os.rename = move
with new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "manifest.json").write_text("new")
    print("writes", flush=True)
    sys.stdin.readline()
"""
"""Says when it writes, and waits for a line then."""


@contextmanager
def writer(target: Path, how: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(target), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writes\n"
            yield process
        finally:
            process.kill()


def test_two_at_once(tmp_path: Path) -> None:
    target = tmp_path / "x.bundle"
    with writer(target) as first:
        with pytest.raises(BundleError, match=r"another process is writing .*x\.bundle\. Wait for it"), new_folder(target):
            pytest.fail("the block must not run")
        with new_folder(tmp_path / "y.bundle") as beside:
            write(beside)
        first.communicate("\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bundle", "y.bundle"]


def test_what_a_killed_process_left_goes_with_the_next_of_the_same_name(tmp_path: Path) -> None:
    target = tmp_path / "x.bundle"
    with writer(target) as killed, writer(tmp_path / "x.bundle.b") as other:
        killed.kill()
        killed.wait()
        with new_folder(tmp_path / "x") as unlike:
            write(unlike)
        assert len(list(tmp_path.glob(".x.bundle.????????.tmp"))) == 1
        with new_folder(target) as again:
            write(again)
        assert not list(tmp_path.glob(".x.bundle.????????.tmp"))
        other.communicate("\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.bundle", "x.bundle.b"]


def test_killed_between_two_renames(folder: Path) -> None:
    with writer(folder, "killed between two renames") as killed:
        killed.communicate("\n")
        assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    with pytest.raises(BundleError, match="exists already"), new_folder(folder):
        pytest.fail("the block must not run")
    Bundle.open(folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_readers_see_the_one_or_the_other(folder: Path) -> None:
    """Each bundle names itself in the family, in its graph file and by the file's hash."""
    done = threading.Event()
    found: list[str] = []

    def replace_often() -> None:
        for number in range(150):
            with new_folder(folder, overwrite=True) as new:
                (new / "graphs").mkdir()
                (new / "graphs" / "double.onnx").write_text(f"family {number}")
                manifest = make_manifest(new)
                write_manifest(new, msgspec.structs.replace(manifest, family=f"family {number}", files=list_files(new)))
        done.set()

    thread = threading.Thread(target=replace_often)
    thread.start()
    while not done.is_set():
        found.append(Bundle.open(folder).manifest.family)
    thread.join()
    assert len(set(found)) > 2

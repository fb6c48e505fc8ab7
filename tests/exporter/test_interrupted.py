"""An export that is ended, or finds no room, says so in one line and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from foveate.engines import Bundle, BundleError, ExportError, MachineError
from foveate.exporter import ExportOptions, export

CHECKPOINT = Path(__file__).parents[2] / "models" / "qwen2-vl-tiny"
UNCHECKED = ExportOptions(check=False)
COMMAND = """
import resource, signal, sys
from foveate.cli import main
for name in ("SIGTERM", "SIGHUP"):  # what started the tests may ignore them
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""
"""`foveate`, with the largest size of a file before its arguments."""


def command(target: Path, limit: int = 0) -> list[str]:
    arguments = ["export", str(CHECKPOINT), "-o", str(target), "--no-check", "--force"]
    return [sys.executable, "-c", COMMAND, str(limit), *arguments]


def begin(target: Path) -> subprocess.Popen[str]:
    """An export that has begun to write."""
    process = subprocess.Popen(command(target), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list(target.parent.glob(f".{target.name}.????????.tmp/tokenizer")):
            return process
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1), (signal.SIGINT, 1)]
)  # fmt: skip
def test_ended_by_a_signal(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with begin(tmp_path / "x.bundle") as process:
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == code
        assert "Traceback" not in errors
    assert names(tmp_path) == []


def test_killed_and_done_again(tmp_path: Path) -> None:
    target = tmp_path / "x.bundle"
    with begin(target) as process:
        with pytest.raises(BundleError, match="another process is writing"):
            export(CHECKPOINT, target, UNCHECKED)
        process.kill()
    assert len(names(tmp_path)) == 2
    export(CHECKPOINT, target, UNCHECKED)
    assert names(tmp_path) == ["x.bundle"]
    Bundle.open(target)


def test_a_disk_that_is_full_while_writing(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "x.bundle", 100_000), capture_output=True, text=True)
    assert done.returncode == 2
    fact = f"'{tmp_path / 'x.bundle'}' can't be written: File too large"
    assert done.stderr == f"Error: {fact}. Free some space or choose another place.\n"
    assert names(tmp_path) == []


def test_no_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**20, 0, 2**20))
    with pytest.raises(MachineError, match=r"the weights take \d+ MiB, 1 MiB are free on the disk of .*\. Free some space"):
        export(CHECKPOINT, tmp_path / "x.bundle", UNCHECKED)
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_written_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.exporter.checkpoint.Checkpoint.sha256", lambda self: pytest.fail("too late"))
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="can't be written"):
        export(CHECKPOINT, tmp_path / "file" / "x.bundle", UNCHECKED)


def test_a_config_that_is_nested_without_end(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    os.truncate(tmp_path / "checkpoint" / "config.json", 0)
    (tmp_path / "checkpoint" / "config.json").write_text("[" * 200_000)
    with pytest.raises(ExportError, match="nested"):
        export(tmp_path / "checkpoint", tmp_path / "x.bundle", UNCHECKED)

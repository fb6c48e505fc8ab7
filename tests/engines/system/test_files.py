"""A file appears whole or not at all, and leaves nothing beside it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foveate.engines import replace_file
from foveate.engines.system import files

KILLED = """
import os, sys
from pathlib import Path
from foveate.engines import replace_file

os.replace = lambda source, target: os.kill(os.getpid(), 9)
replace_file(Path(sys.argv[1]), b"half")
"""
LIMITED = """
import resource, signal, sys
from pathlib import Path
from foveate.engines import replace_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    replace_file(Path(sys.argv[1]), bytes(5000))
except OSError as error:
    print(error.errno, error.filename)
"""


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert run(KILLED, path).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    replace_file(tmp_path / "b.json", b"other")
    assert left.exists()
    replace_file(path, b"whole")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.json", "b.json"]
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    assert run(LIMITED, path).stdout.split() == [str(errno.EFBIG), str(path)]
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("locks", [True, False])
def test_many_at_once(tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not locks:
        monkeypatch.setattr(files, "acquire_lock", no_locks)
    path = tmp_path / "a.json"

    def work(number: int) -> None:
        for _ in range(20):
            replace_file(path, bytes([number]) * 10_000)
            assert len(set(path.read_bytes())) == 1

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["a.json"]


def no_locks(path: Path, wait: bool) -> None:
    raise OSError(errno.ENOLCK, "no locks")

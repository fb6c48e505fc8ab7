"""Built engines on disk: `<store>/<digest of the key>/engine.bin`, `engine.json` and `build.log`.

A store is normally the folder `engines` of a bundle, whose other files it leaves alone. Beside the entries it makes two
kinds of names, both gone after a build: `.<digest>.lock`, held while an entry is made or removed, and `.<digest>.tmp`, what
is being made or removed. What a killed process leaves behind is known by its free lock.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from foveate.engines.builds.record import (
    ENGINE,
    LOG,
    RECORD,
    RECORD_VERSION,
    EngineKey,
    EngineRecord,
    Entry,
    choose,
    encode_record,
    is_engine,
    read_entry,
)
from foveate.engines.errors import BackendError, MachineError, OptionError
from foveate.engines.format.bundle import hash_file
from foveate.engines.registry import BACKENDS
from foveate.engines.system.locks import acquire_lock, is_locked

__all__ = [
    "ENGINE",
    "ENGINES",
    "LOG",
    "BuildFacts",
    "EngineKey",
    "EngineRecord",
    "EngineStore",
    "Entry",
]

ENGINES = "engines"
"""Of a bundle, where its engines lie if nothing else is said."""

_DIGEST = re.compile(r"[0-9a-f]{32}")
_LEFTOVER = re.compile(r"\.([0-9a-f]{32})\.(?:tmp|lock)")
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class BuildFacts:
    """What a build tells about itself, see `EngineRecord`; `details` hold JSON values."""

    build_seconds: float
    peak_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


class EngineStore:
    """A folder of built engines. Reading works in a folder that can't be written or does not exist.

    Args:
        folder: where the engines lie; made by the first `put`.
        max_bytes: how much all entries may take on disk; None = no bound.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def entries(self) -> list[Entry]:
        """Every entry that can be read, the most recently built first.

        Raises:
            MachineError: the folder can't be listed.
        """
        return self._scan()[0]

    def damaged(self) -> list[tuple[Path, str]]:
        """Every folder that is no readable entry, and why: a broken record, a link, what a killed builder left behind.

        Raises:
            MachineError: the folder can't be listed.
        """
        left = [path for digest, path in self._leftovers() if path.suffix == ".tmp" and not is_locked(self._lock_file(digest))]
        return self._scan()[1] + [(path, f"{path} is half-written, its builder was ended") for path in left]

    def get(self, key: EngineKey) -> Entry | None:
        """The entry of exactly this key, None where there is none or it is damaged."""
        try:
            entry = read_entry(self.folder / key.digest())
        except BackendError:
            return None
        _touch(entry)
        return entry

    def find(self, wanted: EngineKey, bundle: Path, hints: Mapping[str, Any] = MappingProxyType({})) -> Entry:
        """The most recently built engine that fits.

        Args:
            wanted: what the engine has to be; of its options only those that are named have to be equal. An engine
                without weights fits all weights.
            bundle: for the command that the error tells to run.
            hints: options that the command names beside those of `wanted`.

        Raises:
            BackendError: there is none, with what keeps the nearest one from fitting; or it was damaged. Both come with the
                command that builds it.
        """
        entries, damaged = self._scan()
        found = choose(entries, wanted, BACKENDS[wanted.backend].title)
        if isinstance(found, str):
            skipped = f" ({len(damaged)} damaged left out)" if damaged else ""
            raise BackendError(f"{found}{skipped}. Run: {shlex.join(self.command(wanted, bundle, hints))}")
        return self.intact(found, wanted, bundle)

    def intact(self, entry: Entry, wanted: EngineKey, bundle: Path) -> Entry:
        """The entry, if it is what was built; see `Entry.verify_once`.

        Raises:
            BackendError: it is not, with the command that builds it anew.
        """
        try:
            entry.verify_once()
        except BackendError as error:
            raise BackendError(f"{error}. Run: {shlex.join(self.command(wanted, bundle, entry.record.key.options))}") from error
        _touch(entry)
        return entry

    def put(
        self,
        key: EngineKey,
        build: Callable[[Path], BuildFacts],
        protect: Set[str] = frozenset(),
        on_wait: Callable[[], None] | None = None,
    ) -> Entry:
        """The entry of a key, built if it is not there or not intact. Who asks for a key that is being built waits for it.

        Args:
            key: what is built.
            build: writes `engine.bin` and `build.log` into the folder it gets, which vanishes when
                it fails.
            protect: digests of entries that must not go to make room, those of the same build.
            on_wait: called once before waiting for another builder.

        Raises:
            BackendError: the store can't be written, the disk is full, the build wrote no engine, or the engine and those
                in `protect` are larger than `max_bytes`; then nothing is replaced or removed.
        """
        entry = self._intact(key)
        if entry is None:
            digest = key.digest()
            with self._lock(digest, on_wait):
                self._sweep()
                # The lock is held until there is room: two builders must not make room with each other's engine.
                entry = self._intact(key) or self._build(key, build, protect - {digest})
                self.prune(protect | {digest})
        return entry

    def prune(self, protect: Set[str] = frozenset()) -> list[Path]:
        """Removes what killed builders left behind, then entries until all take `max_bytes`: damaged ones, then the least
        recently used. One that is being made, is in `protect` or can't be removed stays.

        Returns:
            The folders of the entries that went.
        """
        self._sweep()
        removed: list[Path] = []
        if self.max_bytes is None:
            return removed
        sizes = {folder: _size_bytes(folder) for folder in self._by_use()}
        excess = sum(sizes.values()) - self.max_bytes
        for folder, size in sizes.items():
            if excess > 0 and folder.name not in protect and self._evict(folder.name):
                removed.append(folder)
                excess -= size
        return removed

    def _paths(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise MachineError(
                f"{self.folder} can't be read: {error.strerror}. Choose another folder for the engines.", options=("engines",)
            ) from error

    def _leftovers(self) -> list[tuple[str, Path]]:
        """Locks and temporary folders, in use or not, with their digests."""
        return [(match[1], path) for path in self._paths() if (match := _LEFTOVER.fullmatch(path.name))]

    def _scan(self) -> tuple[list[Entry], list[tuple[Path, str]]]:
        """Entries, the most recently built first, and damaged folders. Names that are no digest are not ours."""
        entries, damaged = [], []
        for path in self._paths():
            if _DIGEST.fullmatch(path.name):
                try:
                    entries.append(read_entry(path))
                except BackendError as error:
                    if os.path.lexists(path):  # otherwise it was removed just now
                        damaged.append((path, str(error)))
        return sorted(entries, key=lambda entry: entry.record.built_unix_seconds, reverse=True), damaged

    def _by_use(self) -> list[Path]:
        """Folders of the entries in the order in which they may go; links take no room."""
        entries, damaged = self._scan()
        used = sorted(entries, key=lambda entry: (_last_used(entry), entry.record.built_unix_seconds))
        return [path for path, _ in damaged if not path.is_symlink()] + [entry.folder for entry in used]

    def _intact(self, key: EngineKey) -> Entry | None:
        entry = self.get(key)
        with suppress(BackendError):
            if entry is not None:
                entry.verify()
                return entry
        return None

    def _build(self, key: EngineKey, build: Callable[[Path], BuildFacts], others: Set[str]) -> Entry:
        """Builds in a temporary folder that takes the entry's place. The caller holds the lock."""
        temporary, final = self._temporary(key.digest()), self.folder / key.digest()
        try:
            with self._writing():
                _discard(temporary)
                temporary.mkdir()
            facts = self._run(key, build, temporary)
            with self._writing():
                (temporary / LOG).touch()
                record = _make_record(key, temporary / ENGINE, facts)
                (temporary / RECORD).write_bytes(encode_record(record))
                self._check_room(key, _size_bytes(temporary), others)
                _discard(final)  # damaged, or it would not be built again
                os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        entry = read_entry(final)
        entry.remember()
        return entry

    def _run(self, key: EngineKey, build: Callable[[Path], BuildFacts], temporary: Path) -> BuildFacts:
        try:
            facts = build(temporary)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _full(self.folder, f"the engine of graph '{key.graph}' does not fit") from error
        if not is_engine(temporary / ENGINE):
            raise BackendError(f"{key.backend} {key.backend_version} built no engine of graph '{key.graph}'. See its log.")
        return facts

    def _check_room(self, key: EngineKey, size: int, others: Set[str]) -> None:
        kept = sum(_size_bytes(self.folder / digest) for digest in others)
        if self.max_bytes is not None and size + kept > self.max_bytes:
            beside = f" beside {kept} bytes of the same build" if kept else ""
            raise OptionError(
                f"the engine of graph '{key.graph}' takes {size} bytes{beside}, all engines in {self.folder} may take "
                f"{self.max_bytes}. Raise max_bytes.",
                options=("max_gib",),
            )

    def _sweep(self) -> None:
        """Removes what killed builders left behind."""
        for digest in {digest for digest, _ in self._leftovers()}:
            with suppress(OSError), acquire_lock(self._lock_file(digest), wait=False):
                _discard(self._temporary(digest))

    def _evict(self, digest: str) -> bool:
        """Removes an entry, if no one is at it."""
        with suppress(OSError), acquire_lock(self._lock_file(digest), wait=False):
            self._retire(digest)
            return True
        return False

    def _retire(self, digest: str) -> None:
        """Removes an entry so that no one sees half of it. The caller holds the lock."""
        temporary = self._temporary(digest)
        _discard(temporary)
        with suppress(FileNotFoundError):
            os.replace(self.folder / digest, temporary)
        _discard(temporary)

    def _lock(self, digest: str, on_wait: Callable[[], None] | None = None) -> ExitStack:
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            return acquire_lock(self._lock_file(digest), wait=True, on_wait=on_wait)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise _full(self.folder, "the record of an engine does not fit") from error
            raise MachineError(
                f"{self.folder} can't be written: {error.strerror}. Choose another folder for the engines.",
                options=("engines",),
            ) from error

    def command(self, wanted: EngineKey, bundle: Path, hints: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
        """The words of the command that builds the engine: options are called like the flags of `foveate build`."""
        words = ["foveate", "build", str(bundle), "--backend", wanted.backend]
        if BACKENDS[wanted.backend].compiles:
            words += ["--target", wanted.target]
        for name, value in {**hints, **wanted.options}.items():
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, str | int) and value is not False:
                words += [flag] if value is True else [flag, str(value)]
        if self.folder.absolute() != (bundle / ENGINES).absolute():
            words += ["--engines", str(self.folder)]
        return words

    def _lock_file(self, digest: str) -> Path:
        return self.folder / f".{digest}.lock"

    def _temporary(self, digest: str) -> Path:
        return self.folder / f".{digest}.tmp"


def _full(folder: Path, fact: str) -> MachineError:
    remedy = "Free some space or choose another folder for the engines."
    return MachineError(f"the disk of {folder} is full: {fact}. {remedy}", options=("engines",))


def _make_record(key: EngineKey, engine: Path, facts: BuildFacts) -> EngineRecord:
    return EngineRecord(
        schema_version=RECORD_VERSION,
        key=key,
        engine_sha256=hash_file(engine),
        engine_bytes=engine.stat().st_size,
        built_unix_seconds=time.time(),
        build_seconds=facts.build_seconds,
        peak_bytes=facts.peak_bytes,
        details=facts.details,
        files={name: hash_file(engine.with_name(name)) for name in facts.files},
    )


def _touch(entry: Entry) -> None:
    """The record's time of change says when an engine was last used, where the store can be written."""
    with suppress(OSError):
        os.utime(entry.folder / RECORD)


def _last_used(entry: Entry) -> int:
    with suppress(OSError):
        return (entry.folder / RECORD).stat().st_mtime_ns
    return 0


def _size_bytes(folder: Path) -> int:
    """Bytes of the files of an entry, 0 where there is none."""
    size = 0
    with suppress(OSError):  # removed just now
        for path in folder.iterdir():
            size += path.lstat().st_size
    return size


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

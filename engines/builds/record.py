"""One built engine on disk: what it was built from, what is kept about it, and whether it is what a runtime wants."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from foveate.engines.errors import BackendError, reason_of
from foveate.engines.format.bundle import hash_file
from foveate.engines.format.manifest import NonNegative, Sha256
from foveate.engines.system.files import replace_file

ENGINE, RECORD, LOG, VERIFIED = "engine.bin", "engine.json", "build.log", "verified.json"
RECORD_VERSION = 2
FileName = Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*$")]
_MAX_RECORD_BYTES = 64 * 1024 * 1024
_MAX_STATE_BYTES = 64 * 1024


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine was built from, with what, and for what. `options` hold JSON values and are copied.

    Raises:
        TypeError, ValueError: a value of `options` can't be written as JSON.
    """

    graph: str
    graph_sha256: Sha256
    weights_sha256: Sha256 | None
    """None for an engine without weights."""
    backend: str
    backend_version: str
    target: str
    """`sm89` for a GPU, any word for a CPU."""
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "options", json.loads(json.dumps(self.options, allow_nan=False)))

    def digest(self) -> str:
        """32 hex digits: of the sha256 of the key as canonical JSON."""
        canonical = json.dumps(msgspec.structs.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `engine.json`."""

    schema_version: int
    key: EngineKey
    engine_sha256: Sha256
    engine_bytes: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    built_unix_seconds: NonNegative
    build_seconds: NonNegative
    peak_bytes: Annotated[int, msgspec.Meta(ge=0)]
    """Resident memory of the process that built it; 0 = unknown."""
    details: dict[str, Any]
    """Whatever the backend wants to keep: profiles, layers."""
    files: dict[FileName, Sha256] = {}
    """What else of the folder the backend loads, with its hash."""


@dataclass(frozen=True)
class Entry:
    """A folder with an engine. It may go when its store makes room; a file that is open or mapped stays usable."""

    folder: Path
    record: EngineRecord

    @property
    def engine(self) -> Path:
        return self.folder / ENGINE

    @property
    def log(self) -> Path:
        """What the backend said while it built."""
        return self.folder / LOG

    def verify(self) -> None:
        """Compares the engine and the files beside it with the hashes of its record.

        Raises:
            BackendError: one is missing or differs.
        """
        for name, sha256 in {ENGINE: self.record.engine_sha256, **self.record.files}.items():
            path = self.folder / name
            try:
                intact = is_engine(path) and hash_file(path) == sha256
            except OSError as error:
                raise BackendError(f"{path} can't be read: {error.strerror}") from error
            if not intact:
                raise BackendError(f"{path} is missing, was changed or is cut off")
        self.remember()

    def verify_once(self) -> None:
        """`verify`, unless the files are as they were when it was done last: by size, times and inode.

        That is kept in the folder, where it can be written, or else as long as the process runs. It is there for damage: who
        writes into the folder on purpose can write the record too.

        Raises:
            BackendError: see `verify`.
        """
        state = self._state()
        if state is None or state not in (_verified.get(self.folder), _read_state(self.folder / VERIFIED)):
            self.verify()

    def remember(self) -> None:
        """Notes that the files, as they are now, are what was built."""
        state = self._state()
        if state is not None:
            _verified[self.folder] = state
            with suppress(OSError):
                replace_file(self.folder / VERIFIED, msgspec.json.encode(state))

    def _state(self) -> _State | None:
        """What changes when a file does, of every file; None where one is missing."""
        try:
            found = {name: (self.folder / name).lstat() for name in (ENGINE, *self.record.files)}
        except OSError:
            return None
        hashes = {ENGINE: self.record.engine_sha256, **self.record.files}
        return {n: (hashes[n], s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for n, s in found.items()}


_State = dict[str, tuple[str, int, int, int, int]]
"""Of each file: the hash that it was compared with, size, times of the last change of content and of inode, inode."""
_verified: dict[Path, _State] = {}
"""By folder, what this process has verified."""


def _read_state(path: Path) -> _State | None:
    with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError), path.open("rb") as file:
        state: _State = msgspec.json.decode(file.read(_MAX_STATE_BYTES), type=_State)
        return state
    return None


def is_engine(path: Path) -> bool:
    """Whether this is a file with something in it, and no link."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_size > 0


def encode_record(record: EngineRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def read_entry(folder: Path) -> Entry:
    """Reads an entry, not its engine.

    Raises:
        BackendError: no engine is there, the record is not valid or another engine's, or something is a link, which could
            show files from elsewhere.
    """
    try:
        if folder.is_symlink() or not is_engine(folder / ENGINE):
            raise BackendError(f"{folder} is a link or holds no engine")
        for path in (folder / RECORD, folder / LOG):
            if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                raise BackendError(f"{path} is not a plain file")
        if (folder / RECORD).stat().st_size > _MAX_RECORD_BYTES:
            raise BackendError(f"{folder / RECORD} is over {_MAX_RECORD_BYTES} bytes, no record is")
        record = _decode_record((folder / RECORD).read_bytes(), folder / RECORD)
    except OSError as error:
        raise BackendError(f"{error.filename} can't be read: {error.strerror}") from error
    if record.key.digest() != folder.name:
        raise BackendError(f"{folder / RECORD} is the record of another engine")
    return Entry(folder, record)


def choose(entries: list[Entry], wanted: EngineKey, display_name: str) -> Entry | str:
    """The first entry that fits, or what keeps the nearest one from fitting; see `EngineStore.find`."""
    for fits, reason in _CHECKS:
        fitting = [entry for entry in entries if fits(entry.record.key, wanted)]
        if not fitting:
            return reason([entry.record.key for entry in entries], wanted, display_name)
        entries = fitting
    return entries[0]


def _decode_record(data: bytes, where: Path) -> EngineRecord:
    try:
        version = msgspec.json.decode(data, type=dict).get("schema_version")
        if version != RECORD_VERSION:
            raise BackendError(f"{where} has schema version {version!r}, this foveate reads {RECORD_VERSION}")
        return msgspec.json.decode(data, type=EngineRecord)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BackendError(f"{where} is not a valid record: {reason_of(error)}") from error


def _fits_weights(key: EngineKey, wanted: EngineKey) -> bool:
    return key.weights_sha256 is None or key.weights_sha256 == wanted.weights_sha256


def _fits_options(key: EngineKey, wanted: EngineKey) -> bool:
    return not _differing(key, wanted)


def _differing(key: EngineKey, wanted: EngineKey) -> list[str]:
    return [name for name, value in wanted.options.items() if name not in key.options or key.options[name] != value]


def _no_engine(keys: list[EngineKey], wanted: EngineKey, name: str) -> str:
    return f"there is no engine of graph '{wanted.graph}'"


def _stale(keys: list[EngineKey], wanted: EngineKey, name: str) -> str:
    what = "the weights" if any(key.graph_sha256 == wanted.graph_sha256 for key in keys) else "the graph"
    return f"the engine of graph '{wanted.graph}' is stale: {what} of the bundle changed after it was built"


def _other_backend(keys: list[EngineKey], wanted: EngineKey, name: str) -> str:
    return f"the engine of graph '{wanted.graph}' was built with {_values(keys, 'backend')}, not with {name}"


def _other_version(keys: list[EngineKey], wanted: EngineKey, name: str) -> str:
    versions = _values(keys, "backend_version")
    return f"the engine of graph '{wanted.graph}' was built with {name} {versions}, this is {name} {wanted.backend_version}"


def _other_target(keys: list[EngineKey], wanted: EngineKey, name: str) -> str:
    built = f"was built for {_device(_values(keys, 'target'))} with {name} {wanted.backend_version}"
    return f"the engine of graph '{wanted.graph}' {built}, this device is {_device(wanted.target)}"


def _other_options(keys: list[EngineKey], wanted: EngineKey, name: str) -> str:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    key = keys[0]
    differing = [f"{o} {text(key.options.get(o))}, wanted is {text(wanted.options[o])}" for o in _differing(key, wanted)]
    return f"the engine of graph '{wanted.graph}' was built with {'; '.join(differing)}"


def _values(keys: list[EngineKey], field: str) -> str:
    return ", ".join(sorted({getattr(key, field) for key in keys}))


def _device(targets: str) -> str:
    return re.sub(r"\bsm(?=\d)", "SM", targets)


_Fits = Callable[[EngineKey, EngineKey], bool]
_Reason = Callable[[list[EngineKey], EngineKey, str], str]
_CHECKS: tuple[tuple[_Fits, _Reason], ...] = (
    (lambda key, wanted: key.graph == wanted.graph, _no_engine),
    (lambda key, wanted: key.graph_sha256 == wanted.graph_sha256 and _fits_weights(key, wanted), _stale),
    (lambda key, wanted: key.backend == wanted.backend, _other_backend),
    (lambda key, wanted: key.backend_version == wanted.backend_version, _other_version),
    (lambda key, wanted: key.target == wanted.target, _other_target),
    (_fits_options, _other_options),
)
"""What has to fit, in order, and how an error says that it does not."""

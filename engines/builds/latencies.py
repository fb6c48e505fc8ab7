"""`engines/latency.json`: what stages took here, beside the engines and as easily deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from foveate.engines.errors import BundleError, MachineError, reason_of
from foveate.engines.format.manifest import Sha256
from foveate.engines.format.seal import seal, unseal
from foveate.engines.format.spec import Size
from foveate.engines.system.files import replace_file

LATENCIES = "latency.json"
LATENCIES_VERSION = 2
_MAX_BYTES = 16 * 1024 * 1024


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the file's parts: an unknown key is an error."""


class Environment(_Strict, frozen=True):
    """What graphs run on, and how. Latencies are those of one environment."""

    device: str
    """The CPU or GPU as it calls itself."""
    cpus: Size
    """That the process may use."""
    backend: str
    """Name and version."""
    options: dict[str, str]
    """Those of the session that are not the default."""
    vision: str = ""
    """What runs the vision graph where another backend does: its name, version and options."""


class LatencyPoint(_Strict, frozen=True):
    """Median milliseconds of a stage at a number of tokens."""

    tokens: Size
    ms: Annotated[float, msgspec.Meta(ge=0, le=1e12)]


Points = Annotated[tuple[LatencyPoint, ...], msgspec.Meta(min_length=1)]


class LatencyEntry(_Strict, frozen=True):
    """What the stages that depend on numbers of tokens took in one environment, as `foveate profile --save` measured them."""

    environment: Environment
    vision: Points
    """The vision graph, by visual tokens of one run: a picture, or the part of it that was computed."""
    score: Points
    """Scoring and selecting, by visual tokens that were scored."""
    prefill: Points
    """Embedding and prefill, by tokens of the pruned prompt."""


class _Measured(_Strict, frozen=True):
    bundle_sha256: Sha256
    """A folder of engines may serve several bundles."""
    entry: LatencyEntry


class _Version(msgspec.Struct, frozen=True):
    schema_version: int


class _File(_Strict, frozen=True):
    schema_version: int
    measured: tuple[_Measured, ...]


def read_latencies(folder: Path, bundle_sha256: str) -> tuple[LatencyEntry, ...]:
    """The latencies of a bundle, one entry for each environment that was measured; none where there is no file.

    Args:
        folder: of the engines.
        bundle_sha256: `Bundle.sha256`.

    Raises:
        BundleError: the file is damaged or of another version.
        MachineError: it can't be read.
    """
    return tuple(measured.entry for measured in _read(folder / LATENCIES) if measured.bundle_sha256 == bundle_sha256)


def save_latencies(folder: Path, bundle_sha256: str, entry: LatencyEntry) -> Path:
    """Stores an entry in place of an older one of the same bundle and environment; a damaged file is replaced.

    Returns:
        The file.

    Raises:
        MachineError: the folder can't be written.
    """
    path = folder / LATENCIES
    try:
        known = _read(path)
    except BundleError:
        known = ()
    kept = [one for one in known if (one.bundle_sha256, one.entry.environment) != (bundle_sha256, entry.environment)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, seal(_File(LATENCIES_VERSION, (*kept, _Measured(bundle_sha256, entry)))))
    except OSError as error:
        raise MachineError(
            f"{path} can't be written: {error.strerror}. Choose another folder for the engines.", options=("engines",)
        ) from error
    return path


def _read(path: Path) -> tuple[_Measured, ...]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise MachineError(f"{path} can't be read: {error.strerror}. Make it readable or delete it.") from error
    document = unseal(data) if len(data) <= _MAX_BYTES else None
    if document is None:
        raise BundleError(f"{path} was changed after it was written: its sha256 is not that of its content. {_REMEDY}")
    try:
        version = msgspec.json.decode(document, type=_Version).schema_version
        if version != LATENCIES_VERSION:
            raise BundleError(f"{path} has schema version {version}, expected {LATENCIES_VERSION}. {_REMEDY}")
        return msgspec.json.decode(document, type=_File).measured
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} holds no latencies: {reason_of(error)}. {_REMEDY}") from error


_REMEDY = "Delete it, or measure again with 'foveate profile BUNDLE --save'."

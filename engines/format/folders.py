"""Bundles appear whole or not at all, and take the place of another one at once.

Beside `x.bundle` one that is being written makes two names, both gone afterwards: `.x.bundle.lock`, held meanwhile, and
`.x.bundle.XXXXXXXX.tmp`, what is being written or was replaced. What a killed process leaves behind is known by the free lock,
and goes with the next bundle that is written to the same place.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from foveate.engines.errors import BundleError, MachineError
from foveate.engines.format.bundle import MANIFEST
from foveate.engines.system.files import flush_file, name_file
from foveate.engines.system.locks import NO_LOCKS, acquire_lock
from foveate.engines.system.rename import exchange, move_to_free

_RETIRED = ".old"


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well and vanishes when it fails.

    What stood there is replaced in one step, so that there is a bundle at every moment, where the file system can do that: on
    Linux all usual ones, but not NFS. Elsewhere there is none for a moment, and a process that is killed in it leaves both
    hidden; the next one puts the old bundle back.

    Raises:
        BundleError: `target` exists and `overwrite` is off, or is not something that foveate wrote, or another process
            writes it.
        MachineError: the folder around it can't be written.
        OSError: writing failed, for a full disk or another reason.
    """
    target = target.resolve()  # a link stays, what it points to is replaced
    with ExitStack() as stack:
        try:
            _make_parents(target, stack)
            if _lock(target, stack):
                _clear_leftovers(target)
            check_free(target, overwrite)
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        except OSError as error:
            raise MachineError(
                f"{target.parent} can't be written: {error.strerror or error}. Choose another folder."
            ) from error
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield folder
            folder.chmod(0o755)
            _flush(folder)
            _put(folder, target, overwrite)
        except OSError as error:
            name_file(error, target)
            raise


def _make_parents(target: Path, stack: ExitStack) -> None:
    """Makes the folders around a path; those that are empty when the stack is left go."""
    missing = [folder for folder in target.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        stack.callback(_remove_empty, folder)
    target.parent.mkdir(exist_ok=True)  # raises where it is a file


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _lock(target: Path, stack: ExitStack) -> bool:
    """Keeps other processes away until the stack is left; False where there are no locks."""
    try:
        stack.enter_context(acquire_lock(target.with_name(f".{target.name}.lock"), wait=False))
    except BlockingIOError as error:
        raise BundleError(f"another process is writing {target}. Wait for it, or choose another folder.") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _clear_leftovers(target: Path) -> None:
    """Removes what killed processes left; a bundle that one of them had moved aside comes back. The caller holds the lock."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.tmp({re.escape(_RETIRED)})?")
    for path in sorted(target.parent.iterdir()):
        found = ours.fullmatch(path.name)
        if found and found[1] and not target.exists():
            os.rename(path, target)
        elif found:
            shutil.rmtree(path)


def check_free(target: Path, overwrite: bool) -> None:
    """Raises BundleError where `new_folder` would not write; for who wants to know before minutes of work."""
    if target.exists() and not overwrite:
        raise _exists(target)
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle, so it will not be replaced. Choose another folder.")


def _put(folder: Path, target: Path, overwrite: bool) -> None:
    """Moves `folder` to `target`; what stood there is at `folder` then, or gone."""
    check_free(target, overwrite)
    if target.exists():
        if not exchange(folder, target):
            _replace(folder, target)
        return
    try:
        move_to_free(folder, target)
    except FileExistsError as error:  # just now, by another tool or where there are no locks
        raise _exists(target) from error


def _replace(folder: Path, target: Path) -> None:
    """As `exchange`, in two steps."""
    retired = folder.with_name(f"{folder.name}{_RETIRED}")
    os.rename(target, retired)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(retired, target)
        raise
    shutil.rmtree(retired)


def _flush(folder: Path) -> None:
    """Has the disk hold everything before it takes the place of what it holds already."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush_file(path)


def _exists(target: Path) -> BundleError:
    return BundleError(f"{target} exists already. Choose another folder, or replace it.", options=("overwrite",))

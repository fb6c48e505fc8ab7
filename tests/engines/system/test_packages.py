"""What an error says where a package is missing: a command that pip can follow."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from foveate.engines import MissingPackageError, install_remedy, missing_package, needed_package
from foveate.engines.system import packages

EXTRAS = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_names_what_the_extra_brings(extra: str) -> None:
    command = shlex.split(install_remedy(extra).removeprefix("Run: "))
    assert command == ["pip", "install", *EXTRAS[extra]]


def test_one_package_of_an_extra() -> None:
    assert re.fullmatch(r"Run: pip install 'ml-dtypes>=[\d.]+'", install_remedy("tensorrt", "ml_dtypes"))
    error = missing_package("cuda-core", "it reads arrays", "gpu", alone=True)
    assert re.fullmatch(
        r"the package 'cuda-core' is not installed, it reads arrays\. Run: pip install 'cuda-core>=[\d.]+'", str(error)
    )


def test_an_import_that_fails() -> None:
    with pytest.raises(MissingPackageError, match="the package 'nowhere' is not installed, it does nothing"):  # noqa: SIM117
        with needed_package("it does nothing", "cpu"):
            import nowhere.at_all  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"foveate\.nowhere"):  # a mistake of ours  # noqa: SIM117
        with needed_package("it does nothing", "cpu"):
            import foveate.nowhere  # type: ignore[import-not-found]  # noqa: F401


def test_where_foveate_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", missing)
    assert install_remedy("cpu") == "Run: pip install 'foveate[cpu]'"

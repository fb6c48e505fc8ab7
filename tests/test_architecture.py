"""The layout of the project: what is installed where, and what importing it loads."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Set
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import foveate
from foveate.cli import main
from foveate.engines import BACKENDS, DECODERS
from foveate.engines.format.processors import CONSTANTS
from foveate.exporter.families import FAMILIES
from foveate.runtime.processors import PROCESSORS

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDER_OF = SETUPTOOLS["package-dir"]
ROOMS = ["foveate", "foveate.engines", "foveate.exporter", "foveate.runtime"]
HEAVY = ["onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "tensorrt", "torch", "transformers"]


def packages_on_disk() -> set[str]:
    """Every folder with an `__init__.py`, by the name that it is imported as."""
    return {
        ".".join([package, *init.relative_to(ROOT / folder).parts[:-1]])
        for package, folder in FOLDER_OF.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }


def test_every_package_is_installed() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_on_disk()


def test_every_module_is_in_a_package() -> None:
    for folder in FOLDER_OF.values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} has no __init__.py"


def modules_on_disk() -> dict[str, Path]:
    """Every module and package, by the name that it is imported as."""
    return {
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for package, folder in FOLDER_OF.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def imported(code: str, modules: Set[str]) -> set[str]:
    """Those of `modules` that a module's code imports anywhere: at its top, in functions, for types alone."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules


def test_imports_make_no_circle() -> None:
    """Lazy imports count, and a package counts where it is named: no module imports the facade that imports it.

    What a registry names as a string ("module:class") is no import: who reads it needs no more than the protocol.
    """
    modules = modules_on_disk()
    graph = {name: imported(path.read_text(), modules.keys()) for name, path in modules.items()}
    assert "foveate.runtime.types" in graph["foveate.runtime"]
    TopologicalSorter(graph).prepare()  # its error names the circle


@pytest.mark.parametrize(
    "code",
    [
        "import foveate.runtime.types",
        "from foveate.runtime import types",
        "from foveate.runtime.types import Answer",
        "def f():\n    from foveate.runtime.types import Answer",
        "if TYPE_CHECKING:\n    from foveate.runtime.types import Answer",
    ],
)
def test_every_kind_of_import_is_seen(code: str) -> None:
    assert imported(code, modules_on_disk().keys()) == {"foveate.runtime.types"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel built from a copy of the sources, so that nothing is left in the tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in [*FOLDER_OF.values(), "pyproject.toml", "README.md", "LICENSE"]:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    subprocess.run([sys.executable, *command], cwd=copy, check=True)
    (built,) = (copy / "dist").glob("*.whl")
    return zipfile.Path(built)


def test_wheel_holds_one_package(wheel: zipfile.Path) -> None:
    names = [path.name for path in wheel.iterdir()]
    assert sorted(name.partition("-")[2] for name in names) == ["", f"{foveate_version()}.dist-info"]
    for package in SETUPTOOLS["packages"]:
        assert wheel.joinpath(*package.split("."), "__init__.py").exists()
    assert (wheel / "foveate" / "py.typed").exists()
    for page in ("report.html", "profile/template.html", "bench/template.html"):
        assert wheel.joinpath("foveate", *page.split("/")).exists()


def test_wheel_has_the_command_and_the_licence(wheel: zipfile.Path) -> None:
    info = wheel / f"foveate-{foveate_version()}.dist-info"
    assert "foveate = foveate.cli:main" in (info / "entry_points.txt").read_text()
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()


def foveate_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist(room: str) -> None:
    module = import_module(room)
    names = module.__all__
    assert sorted(set(names)) == sorted(names)
    for name in names:
        assert getattr(module, name) is not None, name


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="module 'foveate' has no attribute 'surprise'"):
        foveate.surprise  # noqa: B018


CODE = [target for backend in BACKENDS.values() for target in (backend.session, backend.options, backend.builder) if target]


@pytest.mark.parametrize(
    "targets",
    [CODE, CONSTANTS.values(), DECODERS.values(), FAMILIES.values(), PROCESSORS.values()],
    ids=["backends", "constants", "decoders", "families", "processors"],
)
def test_registries_name_what_exists(targets: Iterable[str]) -> None:
    for target in targets:
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))


def test_every_family_has_both_sides() -> None:
    assert set(FAMILIES) == set(PROCESSORS) == set(CONSTANTS)


@pytest.mark.parametrize("room", ["foveate", "foveate.engines", "foveate.runtime", "foveate.cli"])
def test_importing_is_cheap(room: str) -> None:
    program = f"import sys, {room}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert result.stderr == ""
    assert result.stdout.split() == []


@pytest.mark.parametrize("room", ["foveate.engines", "foveate.runtime"])
def test_rooms_work_where_no_exporter_library_is_installed(room: str) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import {room}"
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


COMMANDS = main.list_commands(click.Context(main))


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=["foveate", *COMMANDS])
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_unknown_command() -> None:
    assert CliRunner().invoke(main, ["surprise"]).exit_code == 2


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.rstrip().endswith(foveate_version())

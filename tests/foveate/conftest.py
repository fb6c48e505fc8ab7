"""The reference checkpoint, exported once through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from foveate.cli import main

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "models" / "qwen2-vl-tiny"
SCENES = ROOT / "models" / "demo-scenes"

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs the command line in this process."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What `foveate export` says about the reference checkpoint, parity check included."""
    return run("export", CHECKPOINT, "-o", tmp_path_factory.mktemp("bundle") / "tiny.bundle")


@pytest.fixture(scope="session")
def bundle(exported: Result) -> Path:
    """The bundle of the reference checkpoint. Not to be changed."""
    return Path(exported.stdout.strip())

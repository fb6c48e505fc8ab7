"""The reference checkpoint, exported once through the command line, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import foveate
from foveate import Pipeline
from foveate.cli import main
from foveate.samples import read_samples

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "models" / "qwen2-vl-tiny"
SCENES = ROOT / "models" / "demo-scenes"

SAMPLES = read_samples(SCENES)
KEEPS = (1.0, 0.25, 0.05)
SELECTORS = ("attention", "random")

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs the command line in this process."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What `foveate export` says about the reference checkpoint, parity check included; beside the bundle, `export.json`."""
    folder = tmp_path_factory.mktemp("bundle")
    return run("export", CHECKPOINT, "-o", folder / "tiny.bundle", "--json", folder / "export.json")


@pytest.fixture(scope="session")
def bundle(exported: Result) -> Path:
    """The bundle of the reference checkpoint. Not to be changed."""
    return Path(exported.stdout.strip())


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    pipe = foveate.load(bundle)
    yield pipe
    pipe.close()

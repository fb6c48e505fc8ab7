"""What every test shares: the `--slow` option and the reasons why a test can't run here."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("foveate", deadline=None)
settings.load_profile("foveate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "takes minutes: run with --slow"
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        reasons["gpu"] = "needs an NVIDIA GPU: nvidia-smi lists none"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "--list-gpus"], capture_output=True).stdout.startswith(b"GPU 0")


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports a checkpoint of `models/` with its trained scorer, each once, parity checked. Not to be changed."""
    from foveate.exporter import ExportOptions, export

    @cache
    def exported(name: str) -> Path:
        checkpoint = Path(__file__).parents[1] / "models" / name
        options = ExportOptions(scorer=checkpoint / "scorer.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's own; the exporter's tests look at them
            return export(checkpoint, tmp_path_factory.mktemp(name) / "tiny.bundle", options).bundle

    return exported


@pytest.fixture(scope="session")
def reference_bundle(trained_bundle: Callable[[str], Path]) -> Path:
    """The reference checkpoint with its trained scorer, exported. Not to be changed."""
    return trained_bundle("qwen2-vl-tiny")


@pytest.fixture(scope="session")
def tiny_llava_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA-1.5, exported; beside it lies its `checkpoint`. Not to be changed."""
    from foveate.exporter import ExportOptions, export
    from tests.tiny_llava import save_tiny

    checkpoint = save_tiny(tmp_path_factory.mktemp("llava") / "checkpoint", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own; the exporter's tests look at them
        return export(checkpoint, checkpoint.parent / "tiny.bundle", ExportOptions(check=False)).bundle

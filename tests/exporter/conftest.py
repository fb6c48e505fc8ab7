"""A tiny random checkpoint and its bundle, made once for all tests of the exporter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foveate.engines import Bundle
from foveate.exporter import ExportResult, export
from models.scenes.checkpoint import build_config, build_model, build_tokenizer, save_checkpoint
from tests.exporter.spellings import flatten_config, shard_weights


def save_tiny(folder: Path, layers: int, tied: bool) -> Path:
    """A random checkpoint with as many text as vision layers, fp16, as transformers 5 saves it."""
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    config.text_config.num_hidden_layers = config.vision_config.depth = layers
    config.text_config.layer_types = ["full_attention"] * layers
    save_checkpoint(build_model(config, seed=0), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, tied. Not to be changed: see `checkpoint_copy`."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", layers=2, tied=True)


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, untied, flat config, sharded weights: as the larger Qwen2-VL are published."""
    folder = save_tiny(tmp_path_factory.mktemp("checkpoint") / "published", layers=1, tied=False)
    flatten_config(folder)
    shard_weights(folder, rename={})
    return folder


@pytest.fixture(scope="session")
def tiny_export(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The checkpoint exported with the parity check on. Not to be changed."""
    return export(checkpoint_folder, tmp_path_factory.mktemp("bundle") / "tiny.bundle")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: ExportResult) -> Bundle:
    return Bundle.open(tiny_export.bundle)


@pytest.fixture(scope="session")
def published_bundle(published_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(export(published_folder, tmp_path_factory.mktemp("bundle") / "published.bundle").bundle)


@pytest.fixture
def checkpoint_copy(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))

"""A small bundle whose graph doubles a row of numbers, and that of a tiny model."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path

import pytest

from foveate.engines import (
    Bundle,
    DecoderEntry,
    GenerationEntry,
    GraphSpec,
    Manifest,
    PromptEntry,
    RetentionPoint,
    ScorerEntry,
    SourceEntry,
    TensorSpec,
    list_files,
    write_manifest,
)

GRAPH = GraphSpec(
    name="double",
    file="graphs/double.onnx",
    inputs=(TensorSpec("x", "float32", ("rows", 2)),),
    outputs=(TensorSpec("y", "float32", ("rows", 2), "device", narrowable=True),),
)


def make_manifest(folder: Path) -> Manifest:
    """The manifest of whatever files lie in `folder`."""
    return Manifest(
        schema_version=7,
        foveate_version="0.1.0",
        family="qwen2_vl",
        source=SourceEntry(name="tiny", sha256="0" * 64),
        graphs={"double": GRAPH},
        decoder=DecoderEntry(
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=32,
            hidden_size=128,
            vocab_size=512,
            position_axes=3,
            max_position_embeddings=2048,
            kv_dtype="float32",
        ),
        prompt=PromptEntry(
            chat_template="{{ messages }}",
            image_token="<|image_pad|>",
            video_token=None,
            eos_token_ids=(2, 0),
            pad_token_id=0,
            template_tokens={"bos_token": "<s>"},
            generation=GenerationEntry(repetition_penalty=1.05, top_k=1),
        ),
        processor={
            "image_mean": [0.5, 0.25, 0.125],
            "image_std": [0.5, 0.5, 0.5],
            "rescale_factor": 0.5,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "min_pixels": 784,
            "max_pixels": 1568,
            "image_token_id": 5,
            "video_token_id": 6,
        },
        scorer=ScorerEntry(
            "trained",
            "1" * 64,
            "foveated",
            (
                RetentionPoint(0.5, 0.99, 0.98, 1.0, 500, 0.985, 0.97, 0.993),
                RetentionPoint(0.5, 0.98, 0.97, 0.99, 300, 0.975, 0.95, 0.99, encode=0.5),
            ),
        ),
        files=list_files(folder),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle on disk."""
    folder = tmp_path / "tiny.bundle"
    for name, content in {"weights/weights.bin": b"weights", "graphs/double.onnx": b"graph"}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, make_manifest(folder))
    return folder


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    """The manifest of that bundle."""
    return make_manifest(folder)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random Qwen2-VL of two layers, with all its graphs. Not to be changed."""
    exporter = pytest.importorskip("foveate.exporter")
    checkpoint = import_module("tests.exporter.conftest").save_tiny(
        tmp_path_factory.mktemp("checkpoint") / "tiny", layers=2, tied=True
    )
    folder = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own; the exporter's tests look at them
        exporter.export(checkpoint, folder, exporter.ExportOptions(check=False))
    return Bundle.open(folder)

"""The gate: a graph that differs never becomes a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from foveate.engines import Bundle, ParityError
from foveate.exporter import ExportOptions, ParityRow, export, parity, pipeline
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.graphs import GraphModule
from foveate.exporter.parity import ParityReport, check_parity
from foveate.exporter.safetensors import read_header


@pytest.fixture
def copied_graphs(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take their graphs from the bundle that is there already, which is faster than tracing them again."""

    def load_graph(graph: GraphModule, weights: Set[str]) -> ir.Model:
        return ir.load(tiny_bundle.file(graph.spec.file))

    monkeypatch.setattr(pipeline, "trace_graph", load_graph)


@pytest.mark.usefixtures("copied_graphs")
def test_failure_writes_nothing(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.TOLERANCES, "logits", 0.0)
    message = r"graph 'decoder', output 'logits', prefill of .*: max \|difference\| to the checkpoint is .*e-.*, allowed 0"
    with pytest.raises(ParityError, match=message):
        export(checkpoint_folder, tmp_path / "x.bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("copied_graphs")
def test_failure_leaves_the_old_bundle(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(checkpoint_folder, tmp_path / "x.bundle", ExportOptions(check=False))
    before = (tmp_path / "x.bundle" / "manifest.json").stat().st_ino
    monkeypatch.setitem(parity.TOLERANCES, "scores", -1.0)
    with pytest.raises(ParityError):
        export(checkpoint_folder, tmp_path / "x.bundle", ExportOptions(overwrite=True))
    assert (tmp_path / "x.bundle" / "manifest.json").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.bundle"]
    Bundle.open(tmp_path / "x.bundle")


@pytest.mark.usefixtures("copied_graphs")
def test_unchecked_export_reports_no_parity_and_every_step(checkpoint_folder: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    result = export(checkpoint_folder, tmp_path / "x.bundle", ExportOptions(check=False), steps.append)
    assert result.parity is None
    assert len(steps) == 8


@pytest.mark.parametrize(
    ("weight", "graph"),
    [
        ("visual.blocks.1.mlp.fc2.bias", "vision"),
        ("language_model.layers.0.self_attn.q_proj.bias", "score"),
        ("language_model.embed_tokens.weight", "embed"),
        ("language_model.layers.1.self_attn.v_proj.weight", "decoder"),
    ],
)
@pytest.mark.parametrize("value", [0.5, np.nan])
def test_wrong_weights_are_found(
    weight: str, graph: str, value: float, checkpoint_folder: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_bundle.path, tmp_path / "x.bundle"))
    (file,) = copy.rglob("*.safetensors")
    stored = read_header(file)[weight]
    values = np.memmap(file, np.float32, "r+", stored.offset, (stored.size_bytes // 4,))
    values[::2] += np.float32(value)
    values.flush()
    family = read_family(Checkpoint.open(checkpoint_folder))
    with pytest.raises(ParityError, match=f"graph '{graph}'"):
        check_parity(Bundle.open(copy, verify=False), family, None, lambda step: None)


def test_nan_does_not_pass() -> None:
    row = ParityRow("decoder", "logits", "prefill", float("nan"), 1.0, "max |difference|")
    assert not row.passed
    assert not ParityReport((row,)).passed


def test_worst_is_nearest_to_its_tolerance() -> None:
    near = ParityRow("embed", "inputs_embeds", "", 1e-7, 2e-7, "max |difference|")
    far = ParityRow("decoder", "logits", "", 1e-5, 1e-3, "max |difference|")
    assert ParityReport((far, near)).worst() is near

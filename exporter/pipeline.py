"""`export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx_ir as ir
from torch import nn

from foveate.engines import (
    SCHEMA_VERSION,
    Bundle,
    ExportError,
    MachineError,
    Manifest,
    RetentionPoint,
    ScorerEntry,
    ScorerError,
    SourceEntry,
    hash_file,
    list_files,
    new_folder,
    write_manifest,
)
from foveate.engines.format.precisions import FP32
from foveate.engines.system.edges import translated
from foveate.exporter.checkpoint import TOKENIZER, Checkpoint
from foveate.exporter.decoder import TextDecoder
from foveate.exporter.families import read_family
from foveate.exporter.family import Family
from foveate.exporter.fuse import FUSED_GRAPHS, fuse_attention, fuse_rotation
from foveate.exporter.graphs import GraphModule, text_graphs, vision_graphs
from foveate.exporter.parity import ParityReport, check_parity
from foveate.exporter.precision import FP32_GRAPHS, plan_precisions
from foveate.exporter.quantise import quantise_graph
from foveate.exporter.safetensors import element_bytes
from foveate.exporter.scorer.file import read_scorer
from foveate.exporter.scorer.network import Scorer
from foveate.exporter.trace import save_graph, trace_graph
from foveate.exporter.weights import Weight, Writable, resolve_weights, write_weights

# Beside the graphs, because ONNX Runtime refuses external data outside of a graph's folder.
_WEIGHTS = "graphs/weights.safetensors"

Progress = Callable[[str], None]
Calibrate = Callable[[Path, Progress], Sequence[RetentionPoint]]


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        precision: of weights and arithmetic: `fp32`, `int8` or `int4`; see `plan_precisions`.
        parts: those of `vision` and `decoder` whose precision is another.
        overwrite: replace a bundle that is already there.
        scorer: file of a trained scorer; None scores by attention.
        check: hold every graph against the checkpoint's own library before the bundle takes its place. It loads the
            whole checkpoint in float32.
    """

    precision: str = FP32
    parts: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    check: bool = True
    scorer: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """The bundle that was written, and how close its graphs are to the checkpoint; None where that was not checked."""

    bundle: Path
    parity: ParityReport | None


@translated(nested=ExportError)
def export(
    checkpoint: Path,
    output: Path,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
    calibrate: Calibrate | None = None,
) -> ExportResult:
    """Writes the bundle of a Hugging Face checkpoint; `output` appears whole or not at all.

    Args:
        checkpoint: the folder of the checkpoint, with config, safetensors and tokenizer.
        output: the bundle's folder.
        options: how to export.
        progress: told each step as it begins, in a few words.
        calibrate: measures the retention curve of the bundle, which lies in a temporary folder still; it is told how to report
            its progress.

    Raises:
        OptionError: there is no such precision.
        ExportError: the checkpoint is incomplete, broken or not supported.
        ScorerError: the scorer is broken, or was trained for another checkpoint.
        ParityError: a graph differs from the checkpoint.
        BundleError: `output` exists, or another process writes it.
        MachineError: memory or disk do not suffice, or the folder of `output` can't be written.
    """
    options, report = options or ExportOptions(), progress or (lambda step: None)
    precisions = plan_precisions(options.precision, options.parts)
    report("reading the checkpoint")
    source = Checkpoint.open(Path(checkpoint))
    family = read_family(source)
    with new_folder(Path(output), options.overwrite) as folder:
        scorer = None if options.scorer is None else _read_scorer(Path(options.scorer), source, family)
        graphs = build_graphs(family, scorer and scorer.network, precisions)
        weights = resolve_weights([graph.module for graph in graphs], source, family.checkpoint_keys)
        manifest = _manifest(family, source, graphs, scorer.entry if scorer else ScorerEntry())
        source.load_tokenizer().save(str(_inside(folder, f"tokenizer/{TOKENIZER}")))
        _write_graphs(graphs, weights, folder, report)
        report("hashing the files")
        write_manifest(folder, msgspec.structs.replace(manifest, files=list_files(folder)))
        network = scorer and scorer.network
        bundle = Bundle.open(folder, verify=False)
        parity = check_parity(bundle, family, network, report) if options.check else None
        if calibrate:
            report("measuring the retention curve")
            _store_retention(folder, calibrate(folder, report))
    return ExportResult(Path(output), parity)


def build_graphs(
    family: Family, scorer: Scorer | None = None, precisions: Mapping[str, str] = FP32_GRAPHS
) -> list[GraphModule]:
    """The graphs of a bundle of the family, those that `precisions` names."""
    vision = vision_graphs(family.vision_tower(), family.vision_inputs, family.decoder)
    graphs = [*vision, *text_graphs(TextDecoder(family.decoder), scorer)]
    return [graph.in_precision(precisions[graph.spec.name]) for graph in graphs if graph.spec.name in precisions]


class _TrainedScorer(NamedTuple):
    network: Scorer
    entry: ScorerEntry


def _read_scorer(path: Path, source: Checkpoint, family: Family) -> _TrainedScorer:
    network, facts = read_scorer(path)
    heads = family.decoder.num_attention_heads
    remedy = f"Label with this checkpoint and train: 'foveate scorer label {source.path} DATA -o LABELS'."
    if facts.heads != heads:
        raise ScorerError(f"{path} is a scorer for {facts.heads} attention heads, {source.path} has {heads}. {remedy}")
    if facts.checkpoint_sha256 != source.sha256():
        raise ScorerError(f"{path} was trained for another checkpoint, '{facts.checkpoint}', than {source.path}. {remedy}")
    return _TrainedScorer(network, ScorerEntry("trained", hash_file(path), default_selector="foveated"))


def _store_retention(folder: Path, retention: Sequence[RetentionPoint]) -> None:
    manifest = Bundle.open(folder, verify=False).manifest
    scorer = msgspec.structs.replace(manifest.scorer, retention=tuple(retention))
    write_manifest(folder, msgspec.structs.replace(manifest, scorer=scorer))


def _write_graphs(
    graphs: Sequence[GraphModule],
    weights: Mapping[str, Weight],
    folder: Path,
    report: Progress,
) -> None:
    """The graphs, and the weights that they use in the precision in which they use them."""
    models = _trace(graphs, weights, report)
    needed: dict[str, Writable] = {}
    for graph in graphs:
        spec, model = graph.spec, models[graph.spec.name]
        if spec.name in FUSED_GRAPHS:
            fuse_rotation(model)
            fuse_attention(model)
        if spec.precision != FP32:
            needed |= quantise_graph(model, weights, spec.precision)
        needed |= {key: weights[key] for key in model.graph.initializers.keys() & weights.keys()}
    report("writing the weights")
    _check_room(needed.values(), folder)
    stored = write_weights(needed, _inside(folder, _WEIGHTS))
    for graph in graphs:
        save_graph(models[graph.spec.name], graph.spec, stored, _inside(folder, graph.spec.file))


def _check_room(weights: Iterable[Writable], folder: Path) -> None:
    """Before minutes of writing; the rest of a bundle is small."""
    needed = sum(math.prod(weight.shape) * element_bytes(weight.dtype) for weight in weights)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"the weights take {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free on the disk of {folder.parent}. "
            "Free some space or choose another folder."
        )


def _trace(graphs: Sequence[GraphModule], weights: Mapping[str, Weight], report: Progress) -> dict[str, ir.Model]:
    """The graphs by name; those of one module are traced once."""
    models: dict[str, ir.Model] = {}
    traced: dict[nn.Module, ir.Model] = {}
    for graph in graphs:
        if graph.module not in traced:
            report(f"tracing the graph '{graph.spec.name}'")
            traced[graph.module] = trace_graph(graph, weights.keys())
        models[graph.spec.name] = traced[graph.module].clone()
    return models


def _manifest(family: Family, source: Checkpoint, graphs: list[GraphModule], scorer: ScorerEntry) -> Manifest:
    """Everything but the list of files."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        foveate_version=version("foveate"),
        family=family.model_type,
        source=SourceEntry(source.path.resolve().name, source.sha256()),
        graphs={graph.spec.name: graph.spec for graph in graphs},
        decoder=family.decoder.entry(),
        prompt=family.prompt(),
        processor=msgspec.to_builtins(family.processor()),
        scorer=scorer,
        files={},
    )


def _inside(folder: Path, name: str) -> Path:
    """The path of a file of the bundle, its folder made."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path

"""`export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from foveate.engines import (
    SCHEMA_VERSION,
    Bundle,
    DecoderEntry,
    ExportError,
    Manifest,
    ScorerEntry,
    SourceEntry,
    list_files,
    new_folder,
    write_manifest,
)
from foveate.exporter.checkpoint import TOKENIZER, Checkpoint
from foveate.exporter.decoder import DecoderConfig, TextDecoder
from foveate.exporter.families import read_family
from foveate.exporter.family import Family
from foveate.exporter.graphs import GraphModule, text_graphs, vision_graph
from foveate.exporter.parity import ParityReport, check_parity
from foveate.exporter.trace import write_graph
from foveate.exporter.weights import Weight, resolve_weights, write_weights

PRECISIONS = ("fp32",)
# Beside the graphs, because ONNX Runtime refuses external data outside of a graph's folder.
_WEIGHTS = "graphs/weights.safetensors"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        precision: of weights and arithmetic; `fp32`.
        overwrite: replace a bundle that is already there.
        check: hold every graph against the checkpoint's own library before the bundle takes its place. It loads the
            whole checkpoint in float32.
    """

    precision: str = "fp32"
    overwrite: bool = False
    check: bool = True


@dataclass(frozen=True)
class ExportResult:
    """The bundle that was written, and how close its graphs are to the checkpoint; None where that was not checked."""

    bundle: Path
    parity: ParityReport | None


def export(
    checkpoint: Path, output: Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> ExportResult:
    """Writes the bundle of a Hugging Face checkpoint; `output` appears whole or not at all.

    Args:
        checkpoint: the folder of the checkpoint, with config, safetensors and tokenizer.
        output: the bundle's folder.
        options: how to export.
        progress: told each step as it begins, in a few words.

    Raises:
        ExportError: the checkpoint is incomplete, broken or not supported.
        ParityError: a graph differs from the checkpoint.
        BundleError: `output` exists.
    """
    options, report = options or ExportOptions(), progress or (lambda step: None)
    if options.precision not in PRECISIONS:
        raise ExportError(f"precision '{options.precision}' is not supported. Choose one of {', '.join(PRECISIONS)}.")
    report("reading the checkpoint")
    source = Checkpoint.open(Path(checkpoint))
    family = read_family(source)
    graphs = build_graphs(family)
    weights = resolve_weights([graph.module for graph in graphs], source, family.checkpoint_keys)
    manifest = _manifest(family, source, graphs, options)
    with new_folder(Path(output), options.overwrite) as folder:
        shutil.copyfile(source.path / TOKENIZER, _inside(folder, f"tokenizer/{TOKENIZER}"))
        _write_graphs(graphs, weights, folder, report)
        report("hashing the files")
        write_manifest(folder, msgspec.structs.replace(manifest, files=list_files(folder)))
        parity = check_parity(Bundle.open(folder, verify=False), family, report) if options.check else None
    return ExportResult(Path(output), parity)


def build_graphs(family: Family) -> list[GraphModule]:
    """Every graph of a bundle of the family."""
    vision = vision_graph(family.vision_tower(), family.patch_values, family.decoder.hidden_size)
    return [vision, *text_graphs(TextDecoder(family.decoder))]


def _write_graphs(graphs: list[GraphModule], weights: dict[str, Weight], folder: Path, report: Progress) -> None:
    report("writing the weights")
    stored = write_weights(weights, _inside(folder, _WEIGHTS))
    for graph in graphs:
        report(f"writing the graph '{graph.spec.name}'")
        write_graph(graph, stored, _inside(folder, graph.spec.file))


def _manifest(family: Family, source: Checkpoint, graphs: list[GraphModule], options: ExportOptions) -> Manifest:
    """Everything but the list of files."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        foveate_version=version("foveate"),
        family=family.model_type,
        source=SourceEntry(source.path.resolve().name, family.model_type, source.sha256()),
        precision=options.precision,
        graphs={graph.spec.name: graph.spec for graph in graphs},
        decoder=_decoder_entry(family.decoder),
        prompt=family.prompt(),
        processor=family.processor(),
        scorer=ScorerEntry(),
        files={},
    )


def _decoder_entry(config: DecoderConfig) -> DecoderEntry:
    return DecoderEntry(
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        position_axes=config.position_axes,
        max_position_embeddings=config.max_position_embeddings,
        kv_dtype="float32",
    )


def _inside(folder: Path, name: str) -> Path:
    """The path of a file of the bundle, its folder made."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path

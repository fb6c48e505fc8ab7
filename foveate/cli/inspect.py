"""`foveate inspect`: what a bundle holds, and which engines were built of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from foveate.cli.tables import make_table, open_console
from foveate.engines import Bundle
from foveate.engines.store import ENGINES, EngineStore, Entry


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engines", type=click.Path(path_type=Path), help="Folder of the engines.  [default: BUNDLE/engines]")
@click.option("--layers", is_flag=True, help="The layers of each engine's network, by kind.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect_command(bundle: Path, engines: Path | None, layers: bool, as_json: bool) -> None:
    """Show what BUNDLE holds: model, graphs, scorer, engines."""
    opened = Bundle.open(bundle, verify=False)
    store = EngineStore(engines or bundle / ENGINES)
    entries, damaged = store.entries(), store.damaged()
    if as_json:
        facts = {**_facts(opened), "engines": [_engine(entry) for entry in entries], "damaged": [why for _, why in damaged]}
        click.echo(json.dumps(facts))
        return
    console = open_console()
    for name, value in _facts(opened).items():
        if name != "graphs":
            console.print(f"{name}: {value}", highlight=False)
    console.print(_graphs(opened))
    if entries:
        console.print(_engines(entries))
        console.print(_profiles(entries))
    else:
        console.print("no engines: ONNX Runtime runs the graphs as they are, 'foveate build' makes engines or packs weights")
    if layers:
        console.print(_layers(entries))
    for _, why in damaged:
        console.print(f"damaged: {why}", style="red")


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    retention = {f"{point.keep:g}": round(point.share[0], 4) for point in manifest.scorer.retention}
    return {
        "family": manifest.family,
        "source": manifest.source.name,
        "precision": manifest.precision,
        "foveate": manifest.foveate_version,
        "scorer": manifest.scorer.kind,
        "selector": manifest.scorer.default_selector,
        "retained": retention or "not measured",
        "bytes": sum(file.size_bytes for file in manifest.files.values()),
        "graphs": {name: [tensor.name for tensor in graph.inputs] for name, graph in manifest.graphs.items()},
    }


def _engine(entry: Entry) -> dict[str, Any]:
    record = entry.record
    return {
        "graph": record.key.graph,
        "backend": record.key.backend,
        "version": record.key.backend_version,
        "target": record.key.target,
        **record.key.options,
        "engine_bytes": record.engine_bytes,
        "build_seconds": record.build_seconds,
        "peak_bytes": record.peak_bytes,
        **record.details,
        "path": str(entry.engine),
    }


def _graphs(bundle: Bundle) -> Table:
    table = make_table("graph", "inputs", "outputs", "symbols")
    for name, graph in bundle.manifest.graphs.items():
        tensors = (*graph.inputs, *graph.outputs)
        symbols = dict.fromkeys(size for tensor in tensors for size in tensor.shape if isinstance(size, str))
        table.add_row(name, str(len(graph.inputs)), str(len(graph.outputs)), ", ".join(symbols))
    return table


def _engines(entries: list[Entry]) -> Table:
    numbers = ("MiB", "scratch MiB", "layers", "seconds")
    table = make_table("engine", "backend", "target", "precision", *numbers, numbers=numbers)
    for entry in entries:
        record, details = entry.record, entry.record.details
        table.add_row(
            record.key.graph,
            f"{record.key.backend} {record.key.backend_version}",
            record.key.target,
            record.key.options.get("precision", "as it is"),
            f"{record.engine_bytes / 2**20:.1f}",
            f"{details['scratch_bytes'] / 2**20:.1f}" if "scratch_bytes" in details else "-",
            str(sum(details["layers"].values())) if "layers" in details else "-",
            f"{record.build_seconds:.1f}",
        )
    return table


def _profiles(entries: list[Entry]) -> Table:
    """Each set of profiles once: engines for several targets share theirs."""
    table = make_table("engine", "profile", "takes")
    seen = set()
    for entry in entries:
        for profile in entry.record.key.options.get("profiles", ()):
            takes = ", ".join(f"{name} {':'.join(map(str, sizes))}" for name, sizes in profile["ranges"].items())
            row = (entry.record.key.graph, profile["name"], takes)
            if row not in seen:
                table.add_row(*row)
            seen.add(row)
    return table


def _layers(entries: list[Entry]) -> Table:
    table = make_table("engine", "target", "precision", "layers")
    for entry in (entry for entry in entries if "layers" in entry.record.details):
        key, layers = entry.record.key, entry.record.details["layers"]
        table.add_row(key.graph, key.target, key.options["precision"], ", ".join(f"{n} {kind}" for kind, n in layers.items()))
    return table

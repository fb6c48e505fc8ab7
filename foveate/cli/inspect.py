"""`foveate inspect`: what a bundle holds, and which engines were built of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.cli.command import Need, always, command, when
from foveate.cli.documents import Engine, Inspected
from foveate.cli.options import PATH, json_option
from foveate.cli.output import STDOUT, Output
from foveate.cli.tables import Table
from foveate.engines import Bundle, RetentionPoint
from foveate.engines.builds.store import ENGINES, EngineStore, Entry

TABLES = Need(lambda given: given["json_file"] != STDOUT, "the JSON has the layers in any case", "Leave out --json")


@command("inspect")
@always("bundle", type=PATH)
@always("--engines", type=PATH, help="Folder of the engines.  [default: BUNDLE/engines]")
@when(TABLES, "--layers", is_flag=True, help="The layers of each engine's network, by kind.")
@json_option
def inspect_command(bundle: Path, engines: Path | None, layers: bool, json_file: Path | None) -> None:
    """Show what BUNDLE holds: model, graphs, scorer, engines."""
    output = Output(json_file)
    opened = Bundle.open(bundle, verify=False)
    store = EngineStore(engines or bundle / ENGINES)
    entries, damaged = store.entries(), [why for _, why in store.damaged()]
    facts = _facts(opened, entries, damaged)
    output.show(_summary(facts), "", _graphs(opened), "")
    if entries:
        output.show(_engines(entries), "", _profiles(entries))
    else:
        output.show("no engines: ONNX Runtime runs the graphs as they are, 'foveate build' makes engines or packs weights")
    if layers and entries:
        output.show("", _layers(entries))
    for why in damaged:
        output.show(f"damaged: {why}")
    output.finish(facts)


def _facts(bundle: Bundle, entries: list[Entry], damaged: list[str]) -> Inspected:
    manifest = bundle.manifest
    return Inspected(
        family=manifest.family,
        source=manifest.source.name,
        precision=manifest.precision,
        exported_by=manifest.foveate_version,
        scorer=manifest.scorer.kind,
        selector=manifest.scorer.default_selector,
        retained=_retained(manifest.scorer.curve()),
        retained_encoded={f"{share:g}": _retained(manifest.scorer.curve(share)) for share in reversed(manifest.scorer.encodes)},
        bytes=sum(file.size_bytes for file in manifest.files.values()),
        graphs={name: tuple(tensor.name for tensor in graph.inputs) for name, graph in manifest.graphs.items()},
        engines=tuple(map(Engine.of, entries)),
        damaged=tuple(damaged),
    )


def _retained(curve: Sequence[RetentionPoint]) -> dict[str, float]:
    return {f"{point.keep:g}": round(point.share[0], 4) for point in curve}


def _summary(facts: Inspected) -> str:
    lines = {
        "family": facts.family,
        "source": facts.source,
        "precision": facts.precision,
        "exported by": f"foveate {facts.exported_by}",
        "scorer": facts.scorer,
        "selector": facts.selector,
        "right answers that stay": _told(facts.retained) or "not measured",
        **{f"right answers that stay with encode {share}": _told(curve) for share, curve in facts.retained_encoded.items()},
        "size": f"{facts.bytes / 2**20:,.1f} MiB",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _told(retained: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} % at keep {keep}" for keep, share in retained.items())


def _graphs(bundle: Bundle) -> Table:
    rows = []
    for name, graph in bundle.manifest.graphs.items():
        tensors = (*graph.inputs, *graph.outputs)
        symbols = dict.fromkeys(size for tensor in tensors for size in tensor.shape if isinstance(size, str))
        rows.append((name, str(len(graph.inputs)), str(len(graph.outputs)), ", ".join(symbols)))
    return Table(("graph", "inputs", "outputs", "symbols"), rows, ("inputs", "outputs"), ("symbols",))


def _engines(entries: list[Entry]) -> Table:
    numbers = ("MiB", "scratch MiB", "layers", "seconds")
    rows = []
    for entry in entries:
        record, details = entry.record, entry.record.details
        rows.append(
            (
                record.key.graph,
                f"{record.key.backend} {record.key.backend_version}",
                record.key.target,
                record.key.options.get("precision", "as it is"),
                f"{record.engine_bytes / 2**20:.1f}",
                f"{details['scratch_bytes'] / 2**20:.1f}" if "scratch_bytes" in details else "-",
                str(sum(details["layers"].values())) if "layers" in details else "-",
                f"{record.build_seconds:.1f}",
            )
        )
    return Table(("engine", "backend", "target", "precision", *numbers), rows, numbers)


def _profiles(entries: list[Entry]) -> Table:
    """Each set of profiles once: engines for several targets share theirs."""
    rows = [
        (
            entry.record.key.graph,
            profile["name"],
            ", ".join(f"{name} {':'.join(map(str, sizes))}" for name, sizes in profile["ranges"].items()),
        )
        for entry in entries
        for profile in entry.record.key.options.get("profiles", ())
    ]
    return Table(("engine", "profile", "takes"), list(dict.fromkeys(rows)), (), ("takes",))


def _layers(entries: list[Entry]) -> Table:
    rows = []
    for entry in (entry for entry in entries if "layers" in entry.record.details):
        key, layers = entry.record.key, entry.record.details["layers"]
        kinds = ", ".join(f"{number} {kind}" for kind, number in layers.items())
        rows.append((key.graph, key.target, key.options["precision"], kinds))
    return Table(("engine", "target", "precision", "layers"), rows, (), ("layers",))

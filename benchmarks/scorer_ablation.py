"""What makes the scorer work: networks, features and labels, one at a time, measured on the validation scenes.

    python -m benchmarks.scorer_ablation models/qwen2-vl-tiny --labels LABELS --paper-labels PAPER --data DATA --work DIR

Every variant is trained on the same number of samples for the same number of epochs, exported, and asked the questions of
DATA at keep 0.25 and 0.125. Finished variants are not run again. The table goes to DIR/ablation.md, the scorers lie
beside it by their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

import foveate
from benchmarks import pages
from foveate.evaluate import evaluate
from foveate.exporter.scorer import NetworkConfig, TrainOptions, train
from foveate.samples import Sample, read_samples

KEEPS = (0.5, 0.25, 0.125)
_OURS: dict[str, Any] = {}
_PAPER: dict[str, Any] = {"kind": "sequence", "features": ("attention",), "depth": 5}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: in the table.
        network: fields of `NetworkConfig`.
        paper_labels: train on relevance as the paper has it: positive part, gradient of the logit.
        paper_target: train on the target as the paper has it: lowest half zero, no exponent.
    """

    name: str
    network: dict[str, Any]
    paper_labels: bool = False
    paper_target: bool = False


VARIANTS = (
    Variant("the paper: 1-D network, one channel, its labels and target", _PAPER, paper_labels=True, paper_target=True),
    Variant("1-D network, one channel", _PAPER),
    Variant("1-D network, all features", {"kind": "sequence", "depth": 5}),
    Variant("2-D network, one channel", {**_OURS, "features": ("attention",)}),
    Variant("**ours: 2-D network, all features**", _OURS),
    Variant("- with the paper's labels", _OURS, paper_labels=True),
    Variant("- with the paper's target", _OURS, paper_target=True),
    Variant("- heads as channels, their means only", {**_OURS, "features": ("mean",)}),
)


def run(
    variant: Variant, checkpoint: Path, labels: Path, samples: list[Sample], scorer: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """Trains, exports and asks; the figures of one row."""
    bundle = scorer.with_name("variant.bundle")
    result = train(labels, scorer, TrainOptions(network=NetworkConfig(**variant.network), **options))
    foveate.export(checkpoint, bundle, foveate.ExportOptions(overwrite=True, check=False, scorer=scorer))
    with foveate.load(bundle, verify=False) as pipe:
        results = evaluate(pipe, samples, KEEPS, ["learned"], max_new_tokens=8)
    groups = {group.type: {row.keep: row for row in group.rows} for group in (results.overall, *results.types)}
    return {
        "weights": sum(parameter.numel() for parameter in result.scorer.parameters()),
        **{f"{name} {keep:g}": groups[name][keep].accuracy.value for name in ("all", "count") for keep in KEEPS},
    }


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), required=True)
@click.option("--paper-labels", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--limit", default=4000, show_default=True, help="Training samples.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--questions", default=1000, show_default=True, help="The first so many of DATA.")
@click.option("--seed", default=0, show_default=True)
def main(
    checkpoint: Path,
    labels: Path,
    paper_labels: Path,
    data: Path,
    work: Path,
    limit: int,
    epochs: int,
    questions: int,
    seed: int,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    samples, rows = read_samples(data)[:questions], {}
    for variant in VARIANTS:
        done = work / f"{VARIANTS.index(variant):02d}.json"
        if not done.is_file():
            chosen = paper_labels if variant.paper_labels else labels
            options = {"limit": limit, "epochs": epochs, "patience": epochs, "seed": seed}
            options |= {"masked_share": 0.5, "exponent": 1.0} if variant.paper_target else {}
            scorer = done.with_suffix(".safetensors")
            done.write_text(json.dumps(run(variant, checkpoint, chosen, samples, scorer, options)) + "\n")
        rows[variant.name] = json.loads(done.read_text())
        click.echo(f"{variant.name}: {rows[variant.name]}")
        (work / "ablation.md").write_text(table(rows))


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """The figures in markdown."""
    names = {f"keep {keep:g}": f"all {keep:g}" for keep in KEEPS} | {f"count, {keep:g}": f"count {keep:g}" for keep in KEEPS}
    columns: dict[str, Callable[[str], str]] = {"variant": str, "weights": lambda name: f"{rows[name]['weights']:,}"}
    columns |= {head: partial(lambda key, name: f"{100 * rows[name][key]:.1f}", key) for head, key in names.items()}
    return "\n".join(pages.table(rows, columns)) + "\n"


if __name__ == "__main__":
    main()

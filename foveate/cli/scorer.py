"""`foveate scorer`: labels from explanations, and a scorer trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from foveate.cli.export import load_exporter
from foveate.cli.progress import Bar
from foveate.engines import ScorerError, replace_file

if TYPE_CHECKING:
    from foveate.exporter.scorer import Epoch


@click.group("scorer")
def scorer_command() -> None:
    """Label a model's answers with what mattered for them, and train the scorer that predicts it."""


@scorer_command.command("label")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the labels.")
@click.option("--objective", default="margin", show_default=True, help="What is differentiated: margin or logit.")
@click.option("--contribution", default="magnitude", show_default=True, help="What counts: magnitude or positive.")
@click.option("--wrong", is_flag=True, help="Label wrong answers too (for the oracle; training leaves them out).")
@click.option("--limit", type=int, help="Label this many samples, drawn with --seed.  [default: all]")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option("--max-new-tokens", default=16, show_default=True, help="Longest answer.")
@click.option("--shard-size", default=50, show_default=True, help="Samples a file; a killed run loses at most these.")
def label_command(checkpoint: Path, data: Path, output: Path, **options: Any) -> None:
    """Label what CHECKPOINT answers correctly in DATA, a folder of images with a questions.jsonl.

    A run that was killed goes on where it stopped when it is started again.
    """
    load_exporter()
    from foveate.exporter.scorer import LabelOptions
    from foveate.scorer import label_folder

    with Bar("Labelling") as bar:
        result = label_folder(checkpoint, data, output, LabelOptions(**options), bar.show)
    click.echo(f"{result.labelled} of {result.seen} samples labelled in this run", err=True)
    click.echo(output)


def _check_output(path: Path, force: bool) -> None:
    """Refuses what could not be written, before the training."""
    if path.suffix != ".safetensors":
        raise ScorerError(f"the output is {path}, expected a file that ends in .safetensors. Rename it.")
    if path.is_dir() or not path.parent.is_dir():
        fact = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ScorerError(f"the output is {path}, which {fact}. Choose another file.")
    if path.exists() and not force:
        raise ScorerError(f"{path} exists already. Choose another file or pass --force to replace it.")


@scorer_command.command("train")
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File, e.g. scorer.safetensors.")
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with options; those of the command line win.")
@click.option("--epochs", type=int, help="Most passes over the samples.")
@click.option("--limit", type=int, help="Train on this many samples.")
@click.option("--seed", type=int, help="Seed of weights, split and order.")
@click.option("--force", is_flag=True, help="Replace a scorer that exists.")
def train_command(labels: Path, output: Path, config: Path | None, force: bool, **options: Any) -> None:
    """Train a scorer on LABELS. It needs no model; the learning curve goes beside the scorer as a PNG."""
    load_exporter()
    from foveate.charts import learning_curve
    from foveate.exporter.scorer import TrainOptions, train

    given = {name: value for name, value in options.items() if value is not None}
    chosen = TrainOptions.read(config, **given) if config else TrainOptions(**given)
    _check_output(output, force)
    console = Console(stderr=True)

    def report(number: int, epoch: Epoch) -> None:
        if console.is_terminal:
            console.print(f"epoch {number + 1}: training {epoch.training:.4f}, validation {epoch.validation:.4f} nats")

    result = train(labels, output, chosen, report)
    curve = output.with_suffix(".png")
    losses = [(epoch.training, epoch.validation) for epoch in result.history]
    replace_file(curve, learning_curve(losses, result.best_epoch))
    best = result.history[result.best_epoch]
    click.echo(
        f"{result.facts.training['training_samples']} samples, validation {best.validation:.4f} nats at epoch "
        f"{result.best_epoch + 1} of {len(result.history)}; learning curve: {curve}",
        err=True,
    )
    click.echo(output)

"""`foveate scorer`: labels from explanations, and a scorer trained on them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from foveate.cli.command import Need, always, command, when
from foveate.cli.documents import Labelled, Losses, Trained
from foveate.cli.export import load_exporter
from foveate.cli.files import check_checkpoint, check_exists, check_output, write_output
from foveate.cli.options import PATH, json_option
from foveate.cli.output import Output
from foveate.cli.progress import Bar
from foveate.engines import OptionError
from foveate.samples import read_samples

if TYPE_CHECKING:
    from foveate.exporter.scorer import Epoch

LIMIT = Need(lambda given: given["limit"] is not None, "all samples are labelled", "Draw some with --limit")


@click.group("scorer")
def scorer_command() -> None:
    """Label a model's answers with what mattered for them, and train the scorer that predicts it."""


@command("label")
@always("checkpoint", type=PATH)
@always("data", type=PATH)
@always("-o", "--output", type=PATH, required=True, help="Folder of the labels.")
@always("--objective", default="margin", show_default=True, help="What is differentiated: margin or logit.")
@always("--contribution", default="magnitude", show_default=True, help="What counts: magnitude or positive.")
@always("--wrong", is_flag=True, help="Label wrong answers too (for the oracle; training leaves them out).")
@always("--limit", type=int, help="Label this many samples, drawn with --seed.  [default: all]")
@when(LIMIT, "--seed", default=0, show_default=True, help="Seed of the draw.")
@always("--max-new-tokens", default=16, show_default=True, help="Longest answer.")
@always("--shard-size", default=50, show_default=True, help="Samples a file; a killed run loses at most these.")
@json_option
def label_command(checkpoint: Path, data: Path, output: Path, json_file: Path | None, **options: Any) -> None:
    """Label what CHECKPOINT answers correctly in DATA, a folder of images with a questions.jsonl.

    A run that was killed goes on where it stopped when it is started again.
    """
    out = Output(json_file)
    check_checkpoint(checkpoint)
    read_samples(data)
    choices = load_exporter("scorer").LabelOptions(**options)
    from foveate.scorer import label_folder

    with Bar("Labelling") as bar:
        result = label_folder(checkpoint, data, output, choices, bar.show)
    click.echo(f"{result.labelled} of {result.seen} samples labelled in this run", err=True)
    out.say(str(output))
    out.finish(Labelled(labels=str(output), seen=result.seen, labelled=result.labelled))


def _check_scorer(path: Path, overwrite: bool) -> None:
    """Refuses what could not be written, before the training."""
    if path.suffix != ".safetensors":
        raise OptionError(f"the output is {path}, expected a file that ends in .safetensors. Rename it.")
    check_output("--output", path)
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists already. Choose another file, or replace it.", options=("overwrite",))


@command("train")
@always("labels", type=PATH)
@always("-o", "--output", type=PATH, required=True, help="File, e.g. scorer.safetensors.")
@always("--config", type=PATH, help="JSON file with options; those of the command line win.")
@always("--epochs", type=int, help="Most passes over the samples.")
@always("--limit", type=int, help="Train on this many samples.")
@always("--seed", type=int, help="Seed of weights, split and order.")
@always("--force", "overwrite", is_flag=True, help="Replace a scorer that exists.")
@json_option
def train_command(
    labels: Path, output: Path, config: Path | None, overwrite: bool, json_file: Path | None, **options: Any
) -> None:
    """Train a scorer on LABELS. It needs no model; the learning curve goes beside the scorer as a PNG."""
    out = Output(json_file)
    _check_scorer(output, overwrite)
    check_exists("LABELS", labels, "folder")
    check_exists("--config", config)
    exporter = load_exporter("scorer")
    from foveate.charts import learning_curve

    given = {name: value for name, value in options.items() if value is not None}
    chosen = exporter.TrainOptions.read(config, **given) if config else exporter.TrainOptions(**given)
    console = Console(stderr=True)

    def report(number: int, epoch: Epoch) -> None:
        if console.is_terminal:
            console.print(f"epoch {number + 1}: training {epoch.training:.4f}, validation {epoch.validation:.4f} nats")

    result = exporter.train(labels, output, chosen, report)
    curve = output.with_suffix(".png")
    losses = [(epoch.training, epoch.validation) for epoch in result.history]
    write_output(curve, learning_curve(losses, result.best_epoch))
    best, samples = result.history[result.best_epoch], result.facts.training["training_samples"]
    click.echo(
        f"{samples} samples, validation {best.validation:.4f} nats at epoch "
        f"{result.best_epoch + 1} of {len(result.history)}; learning curve: {curve}",
        err=True,
    )
    out.say(str(output))
    document = Trained(
        scorer=str(output),
        learning_curve=str(curve),
        training_samples=samples,
        epochs=tuple(Losses(**asdict(epoch)) for epoch in result.history),
        best_epoch=result.best_epoch,
        early_stopped=result.early_stopped,
    )
    out.finish(document)


scorer_command.add_command(label_command)
scorer_command.add_command(train_command)

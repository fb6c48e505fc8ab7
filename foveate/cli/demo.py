"""`foveate demo`: what this project is for, in a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from foveate.cli.export import calibration, load_exporter
from foveate.cli.progress import Bar
from foveate.demo import KEEPS, Outcome, run
from foveate.engines import RequestError
from foveate.profile import ProfilePlan, profile_bundle, write_reports
from foveate.runtime import Answer
from foveate.samples import QUESTIONS, read_samples

SCORER = "scorer.safetensors"
"""Where a checkpoint's scorer lies, if it has one."""
REPORT = "report.html"
_PROFILE = ProfilePlan(keeps=KEEPS, image_size=(448, 448), new_tokens=8, repeats=10, clients=(1, 2), requests=5)


@click.command("demo")
@click.option("--checkpoint", type=click.Path(path_type=Path), default=Path("models/qwen2-vl-tiny"), show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("models/demo-scenes"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
def demo_command(checkpoint: Path, data: Path, output: Path) -> None:
    """Export the reference checkpoint, ask about a few scenes with fewer and fewer visual tokens, and measure what it takes."""
    if not (data / QUESTIONS).is_file():
        raise RequestError(f"there is no {data / QUESTIONS}. Run the demo from a clone of the project, or pass --data FOLDER.")
    console, samples, exporter = Console(), read_samples(data), load_exporter()
    with console.status("Exporting ...") as status:

        def progress(step: str) -> None:
            status.update(f"{step} ...")

        scorer = checkpoint / SCORER
        options = exporter.ExportOptions(overwrite=True, scorer=scorer if scorer.is_file() else None)
        bundle = exporter.export(checkpoint, output / "tiny.bundle", options, progress, calibration(data)).bundle
        outcomes = run(bundle, samples, output, progress)
    with Bar("Measuring") as bar:
        write_reports(profile_bundle(bundle, _PROFILE, progress=bar.show), output / REPORT)
    console.print(_answers_table(outcomes))
    console.print(_figures_table(outcomes))
    pictures = f"Pictures (kept tokens bright, dropped ones dimmed): {output}/*.png"
    console.print(f"Bundle: {bundle}\n{pictures}\nWhere time and memory go: {output / REPORT}", soft_wrap=True)


def _answers_table(outcomes: list[Outcome]) -> Table:
    table = Table("question", "right answer", *(f"keep {keep:g}" for keep in KEEPS), title="Answers")
    for outcome in outcomes:
        cells = [
            f"[green]✓[/] {outcome.answers[keep].text}" if outcome.correct(keep) else f"[red]✗[/] {outcome.answers[keep].text}"
            for keep in KEEPS
        ]
        table.add_row(outcome.sample.question, outcome.sample.answer, *cells)
    return table


def _figures_table(outcomes: list[Outcome]) -> Table:
    columns = (
        "keep",
        "right",
        "visual\ntokens",
        "vision\nms",
        "score\nms",
        "embed\nms",
        "prefill\nms",
        "first\ntoken ms",
        "KV\nKiB",
    )
    table = Table(title="Medians over the questions; below them the ratio to keep 1", show_lines=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    whole = [outcome.answers[1.0] for outcome in outcomes]
    for keep in KEEPS:
        answers = [outcome.answers[keep] for outcome in outcomes]
        timings = [answer.timings for answer in answers]
        table.add_row(
            f"{keep:g}",
            f"{sum(outcome.correct(keep) for outcome in outcomes)}/{len(outcomes)}",
            f"{median(len(answer.selection.keep_indices) for answer in answers):g}",
            f"{median(t.vision_ms for t in timings):.1f}",
            f"{median(t.score_ms + t.select_ms for t in timings):.1f}",
            f"{median(t.embed_ms for t in timings):.1f}",
            _beside(answers, whole, lambda answer: answer.timings.prefill_ms),
            _beside(answers, whole, lambda answer: answer.timings.ttft_ms),
            _beside(answers, whole, lambda answer: answer.kv_bytes / 1024),
        )
    return table


def _beside(answers: list[Answer], whole: list[Answer], figure: Callable[[Answer], float]) -> str:
    """Median of a figure, and of its ratio to the same question at keep 1."""
    ratio = median(figure(answer) / figure(other) for answer, other in zip(answers, whole, strict=True))
    return f"{median(map(figure, answers)):.1f}\n{ratio:.2f}x"

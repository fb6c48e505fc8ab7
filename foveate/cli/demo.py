"""`foveate demo`: what this project is for, in a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.table import Table

from foveate.demo import KEEPS, Outcome, run
from foveate.runtime import Answer


@click.command("demo")
@click.option("--checkpoint", type=click.Path(path_type=Path), default=Path("models/qwen2-vl-tiny"), show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("models/demo-scenes"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
def demo_command(checkpoint: Path, data: Path, output: Path) -> None:
    """Export the reference checkpoint and ask about a few scenes with fewer and fewer visual tokens."""
    from foveate.exporter import ExportOptions, export

    console = Console()
    with console.status("Exporting ...") as status:

        def progress(step: str) -> None:
            status.update(f"{step} ...")

        bundle = export(checkpoint, output / "tiny.bundle", ExportOptions(overwrite=True), progress=progress).bundle
        outcomes = run(bundle, data, output, progress)
    console.print(_answers_table(outcomes))
    console.print(_figures_table(outcomes))
    console.print(f"Bundle: {bundle}\nPictures (kept tokens bright, dropped ones dimmed): {output}/*.png", soft_wrap=True)


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
    columns = ("keep", "right", "visual tokens", "vision", "score", "embed", "prefill", "first token", "KV cache")
    table = Table(*columns, title="Medians over the questions, milliseconds; in brackets beside keep 1")
    whole = [outcome.answers[1.0] for outcome in outcomes]
    for keep in KEEPS:
        answers = [outcome.answers[keep] for outcome in outcomes]
        timings = [answer.timings for answer in answers]
        table.add_row(
            f"{keep:g}",
            f"{sum(outcome.correct(keep) for outcome in outcomes)}/{len(outcomes)}",
            f"{median(len(answer.selection.keep_indices) for answer in answers):g}",
            f"{median(t.vision_ms for t in timings):.1f}",
            f"{median(t.score_ms + t.select_ms for t in timings):.2f}",
            f"{median(t.embed_ms for t in timings):.2f}",
            f"{median(t.prefill_ms for t in timings):.2f} ({_beside(answers, whole, lambda a: a.timings.prefill_ms)})",
            f"{median(t.ttft_ms for t in timings):.1f} ({_beside(answers, whole, lambda a: a.timings.ttft_ms)})",
            f"{median(a.kv_bytes for a in answers) / 1024:.0f} KiB ({_beside(answers, whole, lambda a: a.kv_bytes)})",
        )
    return table


def _beside(answers: list[Answer], whole: list[Answer], figure: Callable[[Answer], float]) -> str:
    """Median ratio to the same question at keep 1."""
    return f"{median(figure(a) / figure(w) for a, w in zip(answers, whole, strict=True)):.2f}x"

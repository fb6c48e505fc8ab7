"""`foveate demo`: what this project is for, in a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgspec
from rich.console import Console

from foveate.cli.command import always, command
from foveate.cli.documents import AnswerFacts, Demonstrated, Shown
from foveate.cli.export import Calibration, load_exporter
from foveate.cli.files import check_checkpoint
from foveate.cli.options import PATH, json_option
from foveate.cli.output import Output
from foveate.cli.progress import Bar
from foveate.cli.tables import Table
from foveate.demo import KEEPS, Outcome, run
from foveate.engines import DataError
from foveate.profile import ProfilePlan, profile_bundle, write_reports
from foveate.profile.results import first_token
from foveate.runtime import Answer
from foveate.runtime.stages import columns
from foveate.samples import QUESTIONS, read_samples

SCORER = "scorer.safetensors"
"""Where a checkpoint's scorer lies, if it has one."""
REPORT = "report.html"
_PROFILE = ProfilePlan(keeps=KEEPS, image_size=(448, 448), new_tokens=8, repeats=10, clients=(1, 2), requests=5)


@command("demo")
@always("--checkpoint", type=PATH, default=Path("models/qwen2-vl-tiny"), show_default=True)
@always("--data", type=PATH, default=Path("models/demo-scenes"), show_default=True)
@always("-o", "--output", type=PATH, default=Path("out/demo"), show_default=True)
@json_option
def demo_command(checkpoint: Path, data: Path, output: Path, json_file: Path | None) -> None:
    """Export the reference checkpoint, ask about a few scenes with fewer and fewer visual tokens, and measure what it takes."""
    out = Output(json_file)
    if not (data / QUESTIONS).is_file():
        raise DataError(
            f"there is no {data / QUESTIONS}. Run the demo from a clone of the project, or name another folder.",
            options=("data",),
        )
    check_checkpoint(checkpoint)
    samples, exporter = read_samples(data), load_exporter()
    with Console(stderr=True).status("Exporting ...") as status:

        def progress(step: str) -> None:
            status.update(f"{step} ...")

        scorer = checkpoint / SCORER
        options = exporter.ExportOptions(overwrite=True, scorer=scorer if scorer.is_file() else None)
        bundle = exporter.export(checkpoint, output / "tiny.bundle", options, progress, Calibration(data)).bundle
        outcomes = run(bundle, samples, output, progress)
    with Bar("Measuring") as bar:
        write_reports(profile_bundle(bundle, _PROFILE, progress=bar.show), output / REPORT)
    out.show(_answers_table(outcomes), "", _figures_table(outcomes), "")
    out.say(f"Bundle: {bundle}\nPictures (kept tokens bright, dropped ones dimmed): {output}/*.png")
    out.say(f"Where time and memory go: {output / REPORT}")
    out.finish(Demonstrated(bundle=str(bundle), report=str(output / REPORT), questions=tuple(map(_facts, outcomes))))


def _facts(outcome: Outcome) -> Shown:
    return Shown(
        question=outcome.sample.question,
        right_answer=outcome.sample.answer,
        picture=str(outcome.picture),
        answers={f"{keep:g}": msgspec.convert(answer.to_dict(), AnswerFacts) for keep, answer in outcome.answers.items()},
    )


def _answers_table(outcomes: list[Outcome]) -> Table:
    rows = [
        (
            outcome.sample.question,
            outcome.sample.answer,
            *(f"{'✓' if outcome.correct(keep) else '✗'} {outcome.answers[keep].text}" for keep in KEEPS),
        )
        for outcome in outcomes
    ]
    titles = ("question", "right answer", *(f"keep {keep:g}" for keep in KEEPS))
    return Table(titles, rows, prose=("question",), caption="Answers")


def _figures_table(outcomes: list[Outcome]) -> Table:
    """The stages add up to the first token."""
    stages = columns(lambda stage: stage.heading)
    titles = ("keep", "right", "visual tokens", *(f"{name} ms" for name in stages), "first token ms", "KV KiB")
    whole, rows = [outcome.answers[1.0] for outcome in outcomes], []
    for keep in KEEPS:
        answers = [outcome.answers[keep] for outcome in outcomes]
        right = f"{sum(outcome.correct(keep) for outcome in outcomes)}/{len(outcomes)}"
        kept = f"{median(len(answer.selection.keep_indices) for answer in answers):g}"
        times = first_token([answer.timings for answer in answers])
        cells = {name: f"{sum(times[stage.key] for stage in together):.1f}" for name, together in stages.items()}
        cells["prefill"] += f"\n{_ratio(answers, whole, lambda answer: answer.timings.prefill_ms)}"
        rows.append(
            (
                *(f"{keep:g}", right, kept, *cells.values()),
                f"{sum(times.values()):.1f}\n{_ratio(answers, whole, lambda answer: answer.timings.ttft_ms)}",
                f"{median(answer.kv_bytes for answer in answers) / 1024:.1f}\n{_ratio(answers, whole, lambda a: a.kv_bytes)}",
            )
        )
    caption = "Medians over the questions; first token: their sum; below them the median ratio to keep 1"
    return Table(titles, rows, titles, caption=caption)


def _ratio(answers: list[Answer], whole: list[Answer], figure: Callable[[Answer], float]) -> str:
    """Median ratio of a figure to that of the same question at keep 1."""
    return f"{median(figure(answer) / figure(other) for answer, other in zip(answers, whole, strict=True)):.2f}x"

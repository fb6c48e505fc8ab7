"""What fewer visual tokens cost in right answers: the tables of docs/retention.md.

    python -m benchmarks.retention models/qwen2-vl-tiny --paper PAPER --ours OURS --work out/retention

Writes held-out scenes, labels them for the oracle, exports the checkpoint with its scorer and with the paper's, asks every
question with every selector, runs FastV in PyTorch, and puts the tables between the marks of docs/retention.md. Every step
goes on where it stopped; a finished one is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console

import foveate
from benchmarks.pages import percent, row_of, run, write_between
from foveate.engines import SessionOptions
from foveate.evaluate import Group, Results, difference_points, evaluate_bundle, retained
from foveate.exporter.scorer import LabelOptions
from foveate.scorer import label_folder

KEEPS = (0.5, 0.25, 0.125)
LARGE_KEEPS = (0.5, 0.25, 0.125)
TRAINING_FREE = ("attention", "random", "pooling", "divprune", "cdpruner-openvino", "dart")
SELECTORS = ("learned", "learned-mmr", "learned-dpp", *TRAINING_FREE, "oracle")
SEED = 0
PAGE = Path("docs/retention.md")
CHART = Path("docs/retention.png")
_BEGIN = "<!-- benchmarks/retention.py writes what follows -->"


@dataclass(frozen=True)
class Work:
    """Where the steps leave what they made."""

    folder: Path
    checkpoint: Path

    @property
    def heldout(self) -> Path:
        return self.folder / "heldout"

    @property
    def large(self) -> Path:
        return self.folder / "heldout-large"

    @property
    def labels(self) -> Path:
        return self.folder / "labels"

    def bundle(self, name: str) -> Path:
        return self.folder / f"{name}.bundle"

    def report(self, name: str) -> Path:
        return self.folder / f"report-{name}"


def prepare(work: Work, small: dict[str, Path], count: int, large_count: int) -> None:
    """Data, labels and bundles."""
    for split, folder, number in (("heldout", work.heldout, count), ("heldout-large", work.large, large_count)):
        if not (folder / "questions.jsonl").is_file():
            run("-m", "models.scenes.write", "--split", split, "--seed", SEED, "--count", number, "-o", folder)
    label_folder(work.checkpoint, work.heldout, work.labels, LabelOptions(wrong=True))
    for name, scorer in {"learned": work.checkpoint / "scorer.safetensors", **small}.items():
        if not work.bundle(name).exists():
            foveate.export(work.checkpoint, work.bundle(name), foveate.ExportOptions(scorer=scorer))
    if not (work.folder / "fastv.json").is_file():
        run("-m", "benchmarks.fastv", work.checkpoint, work.heldout, "-o", work.folder / "fastv.json")


def measure(work: Work) -> tuple[Results, Results]:
    """Every question with every selector; gives what was found on `heldout` and on `heldout-large`."""
    console = Console()

    def ask(
        bundle: str, report: str, data: Path, keeps: Sequence[float], selectors: Sequence[str], labels: Path | None = None
    ) -> Results:
        with console.status(report) as status:
            return evaluate_bundle(
                work.bundle(bundle),
                data,
                work.report(report),
                keeps,
                selectors,
                max_new_tokens=8,
                options=SessionOptions(threads=1),
                progress=lambda done, total: status.update(f"{report}: {done} of {total}"),
                labels=labels,
            )

    main = ask("learned", "heldout", work.heldout, KEEPS, SELECTORS, labels=work.labels)
    for name in ("paper", "ours"):
        ask(name, name, work.heldout, KEEPS[1:], ["learned"])
    large = ask("learned", "large", work.large, LARGE_KEEPS, ["learned", "learned-mmr", *TRAINING_FREE])
    return main, large


def right_answers(report: Path) -> dict[tuple[str, float], np.ndarray]:
    """Selector and keep ratio -> bool `[samples]`, from the answers of a report."""
    found: dict[tuple[str, float], list[bool]] = {}
    for line in (report / "answers.jsonl").read_text().splitlines()[1:]:
        for reply in json.loads(line)["replies"]:
            found.setdefault((reply["selector"], reply["keep"]), []).append(reply["right"])
    return {key: np.array(values) for key, values in found.items()}


def best_baseline(results: Results, keep: float) -> str:
    """The training-free selector with the most right answers."""
    return max(TRAINING_FREE, key=lambda name: row_of(results.overall, name, keep).right)


def goals(work: Work, main: Results, large: Results) -> Iterator[str]:
    """The table of goals."""
    yield from ("| | goal | measured |", "|---|---|---|")
    half = row_of(main.overall, "learned", 0.5)
    worst = min(main.types, key=lambda group: _retained(group, "learned", 0.5))
    yield (
        f"| keep 0.5, learned | >= 99 % of keep 1, every type >= 97 % | {percent(half.retained)}; "
        f"lowest type {worst.type}: {100 * _retained(worst, 'learned', 0.5):.1f} |"
    )
    for keep, goal in ((0.25, 97), (0.125, 90)):
        yield f"| keep {keep:g}, learned | >= {goal} % | {percent(row_of(main.overall, 'learned', keep).retained)} |"
    yield (
        "| 512 - 1,024 visual tokens (4x those of the training set), keep 0.25 | >= 96 % of keep 1 | "
        f"{percent(row_of(large.overall, 'learned', 0.25).retained)} |"
    )
    right = right_answers(work.report("heldout"))
    for keep in (0.25, 0.125):
        best = best_baseline(main, keep)
        ahead = difference_points(right[best, keep], right["learned", keep])
        yield (
            f"| learned vs the best training-free baseline ({best}) at {keep:g}, points | interval above 0 | "
            f"{ahead.value:+.2f} ({ahead.low:+.2f} - {ahead.high:+.2f}) |"
        )
    yield f"| oracle (labels) at 0.25 | reported | {percent(row_of(main.overall, 'oracle', 0.25).retained)} |"
    paper, ours = (right_answers(work.report(name)) for name in ("paper", "ours"))
    for keep in (0.25, 0.125):
        ahead = difference_points(paper["learned", keep], ours["learned", keep])
        yield (
            f"| the paper's network, features and labels vs ours at {keep:g}, same samples and epochs | reported | "
            f"{percent(retained(right['all', 1.0], paper['learned', keep]))} vs "
            f"{percent(retained(right['all', 1.0], ours['learned', keep]))}; "
            f"ours {ahead.value:+.2f} ({ahead.low:+.2f} - {ahead.high:+.2f}) points |"
        )


def _retained(group: Group, selector: str, keep: float) -> float:
    estimate = row_of(group, selector, keep).retained
    return 0.0 if estimate is None else estimate.value


def selectors_table(results: Results, selectors: Sequence[str], keeps: Sequence[float]) -> Iterator[str]:
    """Retained accuracy by selector and keep ratio."""
    yield "| selector | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " |"
    yield "|---" * (len(keeps) + 1) + "|"
    for name in selectors:
        yield f"| {name} | " + " | ".join(percent(row_of(results.overall, name, keep).retained) for keep in keeps) + " |"


def types_table(results: Results, selectors: Sequence[str], keeps: Sequence[float]) -> Iterator[str]:
    """Accuracy of each question type."""
    groups = [*sorted(results.types, key=lambda group: group.type), results.overall]
    yield "| selector | keep | " + " | ".join(group.type for group in groups) + " |"
    yield "|---" * (len(groups) + 2) + "|"
    yield "| all tokens | 1 | " + " | ".join(f"{100 * group.whole.accuracy.value:.1f}" for group in groups) + " |"
    for keep in keeps:
        for name in selectors:
            shares = (f"{100 * row_of(group, name, keep).accuracy.value:.1f}" for group in groups)
            yield f"| {name} | {keep:g} | " + " | ".join(shares) + " |"


def fastv_table(work: Work) -> Iterator[str]:
    """FastV beside the learned scorer on the same questions, with the share of the layers' work that is left."""
    facts = json.loads((work.folder / "fastv.json").read_text())
    ours = right_answers(work.report("heldout"))
    yield from ("| keep | FastV, retained | layer work left | learned, retained | layer work left |", "|---|---|---|---|---|")
    whole = np.array(facts["right"]["1"])
    for keep in (0.5, 0.25, 0.125):
        fastv = np.array(facts["right"][f"{keep:g}"])
        left = (facts["full_layers"] + keep * (facts["layers"] - facts["full_layers"])) / facts["layers"]
        learned = retained(ours["all", 1.0][: len(fastv)], ours["learned", keep][: len(fastv)])
        yield f"| {keep:g} | {percent(retained(whole, fastv))} | {left:.2f} | {percent(learned)} | {keep:g} |"


def write_page(work: Work, main: Results, large: Results) -> None:
    """Puts the tables between the marks of the page, and the chart beside it."""
    sections = [
        "### Goals",
        *goals(work, main, large),
        f"Retained accuracy in per cent with its 95 % interval (Bonett and Price), {main.questions:,} held-out questions, "
        f"{large.questions:,} with 512 - 1,024 visual tokens, seed {SEED}.",
        "### Every selector",
        "![Accuracy against kept visual tokens, one line per selector](retention.png)",
        *selectors_table(main, SELECTORS, KEEPS),
        "EVS works between the frames of a video, so it has no row here.",
        "### By question type",
        *types_table(main, ("learned", "attention", "oracle"), (0.5, 0.25, 0.125)),
        "Accuracy in per cent.",
        "### Four times the visual tokens",
        *selectors_table(large, ("learned", "learned-mmr", *TRAINING_FREE), LARGE_KEEPS),
        f"Accuracy with all tokens: {percent(large.overall.whole.accuracy)}.",
        "### FastV",
        *fastv_table(work),
        "FastV runs its first two layers over every token (arXiv 2403.06764), here 2 of 4; at 28 layers 0.30 of the work is "
        "left at keep 0.25. Measured in PyTorch on the first 2,000 questions.",
    ]
    write_between(PAGE, _BEGIN, sections)
    CHART.write_bytes((work.report("heldout") / "accuracy.png").read_bytes())


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--paper", type=click.Path(path_type=Path), required=True, help="The paper's scorer, from scorer_ablation.")
@click.option("--ours", type=click.Path(path_type=Path), required=True, help="Ours of the same budget, from scorer_ablation.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=4000, show_default=True, help="Held-out questions.")
@click.option("--large-count", default=500, show_default=True, help="Questions about images with 512 - 1,024 visual tokens.")
def main(checkpoint: Path, paper: Path, ours: Path, work: Path, count: int, large_count: int) -> None:
    steps = Work(work, checkpoint)
    work.mkdir(parents=True, exist_ok=True)
    prepare(steps, {"paper": paper, "ours": ours}, count, large_count)
    write_page(steps, *measure(steps))


if __name__ == "__main__":
    main()

"""What fewer visual tokens cost in each family, images and video: the tables of docs/retention.md.

    python -m benchmarks.families models/llava-onevision-tiny models/vila1.5-tiny --work out/families

Writes held-out scenes and clips of each checkpoint's world, labels them for the oracle, exports the checkpoint with its scorer
and asks every question with every selector. Every step goes on where it stopped; a finished one is not run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

import foveate
from benchmarks.pages import percent, row_of, run, write_between
from benchmarks.scenes.world import QUESTION_TYPES
from foveate.engines import SessionOptions
from foveate.evaluate import Group, Results, evaluate_bundle
from foveate.exporter.scorer import LabelOptions
from foveate.scorer import label_folder

KEEPS = (0.5, 0.25)
GOALS = {("image", 0.5): 99, ("image", 0.25): 97, ("video", 0.25): 97}
"""Retained accuracy in per cent; for video at keep 0.5 there is none."""
KINDS = ("image", "video")
DEFAULT = "foveated"
"""What a bundle with a scorer chooses by."""
TRAINING_FREE = ("attention", "random", "pooling", "divprune", "cdpruner", "dart")
SELECTORS = {
    "image": (DEFAULT, "learned", *TRAINING_FREE, "oracle"),
    "video": (DEFAULT, "learned", *TRAINING_FREE, "evs", "oracle"),
}
SEED = 3  # 0 and 2 showed what the last stages of the training are for, so they are not held out any more
PAGE, CHART = Path("docs/retention.md"), Path("docs/families.png")
_BEGIN = "<!-- benchmarks/families.py writes what follows -->"


@dataclass(frozen=True)
class Case:
    """One checkpoint asked about one kind of input."""

    checkpoint: Path
    kind: str

    @property
    def name(self) -> str:
        return self.checkpoint.resolve().name

    def ask(self, work: Path, count: int) -> Results:
        """Held-out questions, one a picture or clip, with every selector."""
        folder = work / self.name
        data, labels, bundle = folder / self.kind, folder / f"labels-{self.kind}", folder / "learned.bundle"
        if not (data / "questions.jsonl").is_file():
            options = ("--world", self.name, "--kind", self.kind, "--seed", SEED, "--count", count, "-o", data)
            run("-m", "benchmarks.scenes.write", "--split", "heldout", *options)
        label_folder(self.checkpoint, data, labels, LabelOptions(wrong=True))
        if not bundle.exists():
            foveate.export(self.checkpoint, bundle, foveate.ExportOptions(scorer=self.checkpoint / "scorer.safetensors"))
        title = f"{self.name}, {self.kind}"
        with Console().status(title) as status:
            return evaluate_bundle(
                bundle,
                data,
                folder / f"report-{self.kind}",
                KEEPS,
                SELECTORS[self.kind],
                max_new_tokens=8,
                options=SessionOptions(threads=1),
                progress=lambda done, total: status.update(f"{title}: {done} of {total}"),
                labels=labels,
            )


def goals_table(found: Mapping[Case, Results]) -> Iterator[str]:
    """Retained accuracy of what a bundle chooses by beside its goal."""
    yield from (
        f"| checkpoint | input | all tokens, right | keep | goal | {DEFAULT}, retained | learned | attention | random |",
        "|---" * 9 + "|",
    )
    for case, results in found.items():
        for keep in KEEPS:
            goal = GOALS.get((case.kind, keep))
            names = (DEFAULT, "learned", "attention", "random")
            shares = (percent(row_of(results.overall, name, keep).retained) for name in names)
            yield (
                f"| `{case.name}` | {case.kind} | {percent(results.overall.whole.accuracy)} | {keep:g} | "
                f"{f'>= {goal}' if goal else '-'} | {' | '.join(shares)} |"
            )


def selectors_table(found: Mapping[Case, Results], kind: str) -> Iterator[str]:
    """Retained accuracy by selector, a column for each checkpoint and keep ratio."""
    cases = [case for case in found if case.kind == kind]
    columns = [(case, keep) for case in cases for keep in KEEPS]
    yield "| selector | " + " | ".join(f"`{case.name}`, {keep:g}" for case, keep in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name in SELECTORS[kind]:
        yield f"| {name} | " + " | ".join(percent(row_of(found[c].overall, name, keep).retained) for c, keep in columns) + " |"


def types_table(found: Mapping[Case, Results], kind: str) -> Iterator[str]:
    """Accuracy of each question type with all tokens and with those that a bundle chooses."""
    cases = [case for case in found if case.kind == kind]
    present = {group.type for case in cases for group in found[case].types}
    known = [name for name in QUESTION_TYPES if name in present]
    types = [*known, *sorted(present - set(known))]
    yield "| checkpoint | keep | " + " | ".join(types) + " | all |"
    yield "|---" * (len(types) + 3) + "|"
    for case in cases:
        groups: dict[str, Group] = {group.type: group for group in found[case].types}
        chosen = [*(groups.get(name) for name in types), found[case].overall]
        for keep in (1.0, *KEEPS):
            shares = (f"{100 * _accuracy(group, keep):.1f}" if group else "-" for group in chosen)
            yield f"| `{case.name}` | {keep:g} | {' | '.join(shares)} |"


def _accuracy(group: Group, keep: float) -> float:
    return (group.whole if keep == 1 else row_of(group, DEFAULT, keep)).accuracy.value


def draw(found: Mapping[Case, Results]) -> None:
    """Small multiples: accuracy against kept tokens, a row for each kind and a column for each checkpoint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(case.name for case in found))
    figure = Figure(figsize=(3.6 * len(names), 5.6), layout="constrained")
    grid = figure.subplots(len(KINDS), len(names), sharex=True, sharey=True, squeeze=False)
    lines = {DEFAULT: "#d62839", "learned": "#f0a03c", "attention": "#1d5fbf", "cdpruner": "#2a9d5c", "random": "#8a8f98"}
    for case, results in found.items():
        axes = grid[KINDS.index(case.kind)][names.index(case.name)]
        for name, colour in lines.items():
            rows = [results.overall.whole, *(row_of(results.overall, name, keep) for keep in KEEPS)]
            axes.plot([row.keep for row in rows], [row.accuracy.value for row in rows], "o-", color=colour, label=name)
        axes.set_title(f"{case.name}, {case.kind}", fontsize=10)
        axes.grid(color="#e4e6e9")
        axes.spines[["top", "right"]].set_visible(False)
    first = grid[0][0]
    first.set_xlim(1.04, 0.2)
    first.set_xticks([1.0, 0.5, 0.25], ["100 %", "50 %", "25 %"])
    first.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.supxlabel("visual tokens kept", fontsize=10)
    figure.supylabel("right answers", fontsize=10)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=len(lines), frameon=False)
    figure.savefig(CHART, dpi=140)


def write_page(found: Mapping[Case, Results], count: int) -> None:
    """Puts the tables between the marks of the page, and the chart beside it."""
    sections = [
        *goals_table(found),
        f"Per cent, with 95 % intervals; {count:,} held-out questions of each kind, one a picture or clip, seed {SEED}.",
        "![Accuracy against kept visual tokens for each family, images above, video below](families.png)",
        "### Every selector, images",
        *selectors_table(found, "image"),
        "### Every selector, video",
        *selectors_table(found, "video"),
        "### By question type, images",
        *types_table(found, "image"),
        "### By question type, video",
        *types_table(found, "video"),
    ]
    draw(found)
    write_between(PAGE, _BEGIN, sections)


@click.command(help=__doc__)
@click.argument("checkpoints", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=1000, show_default=True, help="Held-out questions of each kind.")
@click.option("--page/--no-page", default=True, show_default=True, help="Whether to write docs/retention.md.")
def main(checkpoints: Sequence[Path], work: Path, count: int, page: bool) -> None:
    found = {case: case.ask(work, count) for case in (Case(path, kind) for path in checkpoints for kind in KINDS)}
    if page:
        write_page(found, count)
    for line in goals_table(found):
        click.echo(line)


if __name__ == "__main__":
    main()

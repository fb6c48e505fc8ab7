"""What fewer visual tokens cost in each family, images and video: the tables of docs/retention.md.

    python -m benchmarks.families models/llava-onevision-tiny models/vila1.5-tiny --work out/families

Writes held-out scenes and clips of each checkpoint's world with several seeds, exports the checkpoint with its scorer, asks
every question with every selector; the oracle, whose labels are made on the way, only those of the first seed.
Every step goes on where it stopped; a finished one is not run again. Tables pool the seeds that are finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click
import msgspec
from rich.console import Console

import foveate
from benchmarks.pages import percent, row_of, run, write_between
from foveate.engines import SessionOptions
from foveate.evaluate import ANSWERS, REPORTS, Group, Plan, Record, Results, Row, evaluate_bundle, summarise
from foveate.exporter.scorer import LabelOptions
from foveate.samples import QUESTIONS, Sample, read_samples
from foveate.scorer import label_folder
from models.scenes.world import QUESTION_TYPES

KEEPS = (0.5, 0.25)
GOALS = {("image", 0.5): 99, ("image", 0.25): 97, ("video", 0.25): 97}
"""Retained accuracy in per cent; for video at keep 0.5 there is no goal."""
KINDS = ("image", "video")
DEFAULT = "foveated"
"""What a bundle with a scorer chooses by."""
CDPRUNER = ("cdpruner", "cdpruner-frames", "cdpruner-openvino", "cdpruner-openvino-frames")
PARTS = {
    "main": (DEFAULT, "learned", "attention", "random", *CDPRUNER),
    "others": ("pooling", "divprune", "dart"),
    "clips": ("evs",),
    "oracle": ("oracle",),
}
"""Selectors that are asked together: `clips` about video alone, `oracle`, which needs labels, about the first seed alone."""
SEEDS = (11, 12, 13)
"""Nobody looked at them before these tables; 0, 2 and 3 showed what training and selectors lack."""
PAGE, CHART, README = Path("docs/retention.md"), Path("docs/families.png"), Path("README.md")
_BEGIN = "<!-- benchmarks/families.py writes what follows -->"


@dataclass(frozen=True)
class Case:
    """One checkpoint asked about one kind of input; all of it lies in `work`."""

    checkpoint: Path
    kind: str
    work: Path

    @property
    def name(self) -> str:
        return self.checkpoint.resolve().name

    def folder(self, seed: int) -> Path:
        """Of everything about one seed."""
        return self.work / self.name / f"seed-{seed}"

    def questions(self, seed: int, count: int) -> Path:
        """The folder of held-out questions, one a picture or clip."""
        data = self.folder(seed) / self.kind
        if not (data / QUESTIONS).is_file():
            options = ("--world", self.name, "--kind", self.kind, "--seed", seed, "--count", count, "-o", data)
            run("-m", "models.scenes.write", "--split", "heldout", *options)
        return data

    def bundle(self) -> Path:
        """The checkpoint with its scorer, exported."""
        bundle = self.work / self.name / "learned.bundle"
        if not bundle.exists():
            foveate.export(self.checkpoint, bundle, foveate.ExportOptions(scorer=self.checkpoint / "scorer.safetensors"))
        return bundle

    def report(self, seed: int, part: str) -> Path:
        """Where the answers of a part are."""
        return self.folder(seed) / f"report-{self.kind}-{part}"

    def ask(self, seed: int, count: int, part: str) -> None:
        """Asks the selectors of a part; a finished part is not looked at again."""
        if (self.report(seed, part) / REPORTS[0]).is_file():
            return
        data, labels = self.questions(seed, count), None
        if part == "oracle":
            labels = self.folder(seed) / f"labels-{self.kind}"
            label_folder(self.checkpoint, data, labels, LabelOptions(wrong=True))
        title = f"{self.name}, {self.kind}, seed {seed}, {part}"
        with Console().status(title) as status:
            evaluate_bundle(
                self.bundle(),
                data,
                self.report(seed, part),
                KEEPS,
                PARTS[part],
                max_new_tokens=8,
                options=SessionOptions(threads=1),
                progress=lambda done, total: status.update(f"{title}: {done} of {total}"),
                labels=labels,
            )

    def results(self, seeds: Sequence[int]) -> Results | None:
        """What was found over all seeds whose main part is finished; None where there is none."""
        samples: list[Sample] = []
        records: list[Record] = []
        for seed in seeds:
            parts = [self.report(seed, part) for part in PARTS]
            parts = [part for part in parts if (part / REPORTS[0]).is_file()]
            if self.report(seed, "main") in parts:
                samples += read_samples(self.folder(seed) / self.kind)
                records += map(_join, *map(_read, parts))
        plan = Plan.make(KEEPS, selectors_of(self.kind), oracle={})
        return summarise(samples, records, plan) if samples else None


def selectors_of(kind: str) -> tuple[str, ...]:
    """Every selector that is asked about a kind of input."""
    return tuple(name for part, names in PARTS.items() if part != "clips" or kind == "video" for name in names)


def _read(report: Path) -> list[Record]:
    return [msgspec.json.decode(line, type=Record) for line in (report / ANSWERS).read_bytes().splitlines()[1:]]


def _join(*records: Record) -> Record:
    """The answers of several parts to one sample; keep 1 is in each of them."""
    replies = {(reply.selector, reply.keep): reply for record in reversed(records) for reply in record.replies}
    return Record(records[0].number, sum(record.seconds for record in records), tuple(replies.values()))


def goals_table(found: Mapping[Case, Results]) -> Iterator[str]:
    """What stays right with what a bundle chooses by, beside its goal and the other main selectors."""
    names = (DEFAULT, "learned", "attention", "cdpruner-openvino-frames", "random")
    heads = ("checkpoint", "input", "all tokens, right", "keep", "goal, retained", f"{DEFAULT}, stay", f"{DEFAULT}, retained")
    yield "| " + " | ".join((*heads, *(f"{name}, stay" for name in names[1:]))) + " |"
    yield "|---" * (len(heads) + len(names) - 1) + "|"
    for case, results in found.items():
        for keep in KEEPS:
            goal = GOALS.get((case.kind, keep))
            own = row_of(results.overall, DEFAULT, keep)
            others = (percent(row_of(results.overall, name, keep).stay) for name in names[1:])
            yield (
                f"| `{case.name}` | {case.kind} | {percent(results.overall.whole.accuracy)} | {keep:g} | "
                f"{f'>= {goal}' if goal else '-'} | {percent(own.stay)} | {percent(own.retained)} | {' | '.join(others)} |"
            )


def selectors_table(found: Mapping[Case, Results], kind: str) -> Iterator[str]:
    """What stays right and what is retained by selector, a column for each checkpoint and keep ratio."""
    cases = [case for case in found if case.kind == kind]
    columns = [(case, keep) for case in cases for keep in KEEPS]
    yield "| selector | questions | " + " | ".join(f"`{case.name}`, {keep:g}" for case, keep in columns) + " |"
    yield "|---" * (len(columns) + 2) + "|"
    for name in selectors_of(kind):
        rows = [_find(found[case].overall, name, keep) for case, keep in columns]
        asked = sorted({row.questions for row in rows if row})
        cells = (f"{percent(row.stay)}; {_net(row)}" if row else "-" for row in rows)
        yield f"| {name} | {' - '.join(f'{count:,}' for count in asked) or '-'} | {' | '.join(cells)} |"


def _find(group: Group, selector: str, keep: float) -> Row | None:
    """What a selector did, if it was asked."""
    return next((row for row in group.rows if (row.selector, row.keep) == (selector, keep)), None)


def _net(row: Row) -> str:
    return "-" if row.retained is None else f"{100 * row.retained.value:.1f}"


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


LINES = {
    DEFAULT: "#d62839",
    "learned": "#f0a03c",
    "attention": "#1d5fbf",
    "cdpruner": "#2a9d5c",
    "cdpruner-openvino-frames": "#8e44ad",
    "random": "#8a8f98",
}
"""Colours of the chart's lines."""


def draw(found: Mapping[Case, Results]) -> None:
    """Small multiples: what stays right against kept tokens, a row for each kind and a column for each checkpoint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(case.name for case in found))
    figure = Figure(figsize=(3.6 * len(names), 5.8), layout="constrained")
    grid = figure.subplots(len(KINDS), len(names), sharex=True, sharey=True, squeeze=False)
    for case, results in found.items():
        axes = grid[KINDS.index(case.kind)][names.index(case.name)]
        for name, colour in LINES.items():
            stays = [row.stay for keep in KEEPS if (row := row_of(results.overall, name, keep)).stay]
            values, low, high = ([1.0, *ends] for ends in zip(*((s.value, s.low, s.high) for s in stays if s), strict=True))
            axes.fill_between((1.0, *KEEPS), low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot((1.0, *KEEPS), values, "o-", color=colour, label=name, markersize=4)
        axes.set_title(f"{case.name}, {case.kind}", fontsize=10)
        axes.grid(color="#e4e6e9")
        axes.spines[["top", "right"]].set_visible(False)
    first = grid[0][0]
    first.set_xlim(1.04, 0.2)
    first.set_xticks([1.0, 0.5, 0.25], ["100 %", "50 %", "25 %"])
    first.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.supxlabel("visual tokens kept", fontsize=10)
    figure.supylabel("right answers that stay right", fontsize=10)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(CHART, dpi=140)


def readme_table(found: Mapping[Case, Results]) -> Iterator[str]:
    """What stays right, a row for each checkpoint and selector."""
    columns = [(kind, keep) for kind in KINDS for keep in KEEPS]
    yield "| | " + " | ".join(f"{kind}, keep {keep:g}" for kind, keep in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name in dict.fromkeys(case.name for case in found):
        of_kind = {case.kind: results.overall for case, results in found.items() if case.name == name}
        for selector in (DEFAULT, "cdpruner", "cdpruner-openvino-frames", "random"):
            stays = [row_of(of_kind[kind], selector, keep).stay for kind, keep in columns]
            head = f"`{name}`, **{selector}**" if selector == DEFAULT else selector
            yield f"| {head} | {' | '.join(f'{100 * share.value:.1f}' if share else '-' for share in stays)} |"


def _behind(found: Mapping[Case, Results], seeds: Sequence[int]) -> str:
    questions = sorted({results.questions for results in found.values()})
    counts = " to ".join(f"{count:,}" for count in questions[:: max(1, len(questions) - 1)])
    return f"{counts} held-out questions of each checkpoint and kind, one a picture or clip, seeds {', '.join(map(str, seeds))}"


def write_page(found: Mapping[Case, Results], seeds: Sequence[int]) -> None:
    """Puts the tables between the marks of the page and of the README, and the chart beside them."""
    sections = [
        *goals_table(found),
        f"Per cent, with 95 % intervals; {_behind(found, seeds)}.",
        "![Right answers that stay against kept visual tokens for each family, images above, video below](families.png)",
        "### Every selector, images",
        "Stay with its interval; behind the semicolon what is retained.",
        *selectors_table(found, "image"),
        "### Every selector, video",
        *selectors_table(found, "video"),
        "### By question type, images",
        f"Right answers in per cent, with all tokens and with `{DEFAULT}`.",
        *types_table(found, "image"),
        "### By question type, video",
        *types_table(found, "video"),
    ]
    draw(found)
    write_between(PAGE, _BEGIN, sections)
    write_between(README, _BEGIN, [*readme_table(found), f"{_behind(found, seeds)}."])


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


@click.command(help=__doc__)
@click.argument("checkpoints", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", default=",".join(map(str, SEEDS)), show_default=True, callback=_numbers, help="Of the questions.")
@click.option("--count", default=1000, show_default=True, help="Held-out questions of each kind and seed.")
@click.option("--ask/--no-ask", default=True, show_default=True, help="Whether to ask, or only to count finished answers.")
@click.option("--page/--no-page", default=True, show_default=True, help="Whether to write docs/retention.md.")
def main(checkpoints: Sequence[Path], work: Path, seeds: tuple[int, ...], count: int, ask: bool, page: bool) -> None:
    cases = [Case(path, kind, work) for path in checkpoints for kind in KINDS]
    for part, seed, case in product(PARTS, seeds, cases) if ask else ():
        if (part != "clips" or case.kind == "video") and (part != "oracle" or seed == seeds[0]):
            case.ask(seed, count, part)
    found = {case: results for case in cases if (results := case.results(seeds))}
    if page:
        write_page(found, seeds)
    for line in goals_table(found):
        click.echo(line)


if __name__ == "__main__":
    main()

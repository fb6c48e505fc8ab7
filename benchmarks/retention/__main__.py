"""What fewer visual tokens and fewer bits cost in right answers: the tables of docs/retention.md, and README's.

    python -m benchmarks.retention models/llava-onevision-tiny models/vila1.5-tiny --work out/retention

Writes held-out scenes and clips of each checkpoint's world, exports the checkpoint with its scorer, and asks. `families` asks
every question with every selector; the oracle, whose labels are made on the way, only those of the first seed. `precisions`
asks bundles of every precision. Every step goes on where it stopped; a finished one is not run again. Tables pool the seeds
that are finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import click

from benchmarks.pages import write_between
from benchmarks.readme import write_readme
from benchmarks.retention.asking import KINDS, Case
from benchmarks.retention.chart import draw
from benchmarks.retention.tables import STUDIES, Found

PAGE, CHART = Path("docs/retention.md"), Path("docs/families.png")
MARK = "<!-- benchmarks/retention writes {}: -->"


def ask_all(name: str, cases: Sequence[Case], seeds: Sequence[int], count: int) -> None:
    """What of a study is not finished yet."""
    for part, seed, case in product(STUDIES[name].parts, seeds, cases):
        if case.kind in part.kinds and (seed == seeds[0] or not part.labelled):
            case.ask(seed, count, part)


def write_page(name: str, found: Found, seeds: Sequence[int]) -> None:
    """Puts the tables of a study between its marks; the families have a chart and rows of README too."""
    write_between(PAGE, MARK.format(name), list(STUDIES[name].sections(found, _behind(found, seeds))))
    if name == "families":
        draw(found, CHART)
        write_readme()


def _behind(found: Found, seeds: Sequence[int]) -> str:
    questions = sorted({results.questions for results in found.values()})
    counts = " to ".join(f"{count:,}" for count in questions[:: max(1, len(questions) - 1)])
    return f"{counts} held-out questions of each checkpoint and kind, one a picture or clip, seeds {', '.join(map(str, seeds))}"


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


@click.command(help=__doc__)
@click.argument("checkpoints", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--table", "names", type=click.Choice(list(STUDIES)), multiple=True, default=list(STUDIES), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", callback=_numbers, help="Of the questions.  [default: 11,12,13 for families, 3 for precisions]")
@click.option("--count", default=1000, show_default=True, help="Held-out questions of each kind and seed.")
@click.option("--ask/--no-ask", default=True, show_default=True, help="Whether to ask, or only to count finished answers.")
@click.option("--page/--no-page", default=True, show_default=True, help="Whether to write docs/retention.md and README.md.")
def main(
    checkpoints: Sequence[Path], names: Sequence[str], work: Path, seeds: tuple[int, ...], count: int, ask: bool, page: bool
) -> None:
    cases = [Case(path, kind, work) for path in checkpoints for kind in KINDS]
    for name in names:
        study = STUDIES[name]
        chosen = seeds or study.seeds
        if ask:
            ask_all(name, cases, chosen, count)
        found = study.found(cases, chosen)
        if not found:
            raise click.ClickException(f"nothing of '{name}' is finished in {work}. Leave out --no-ask.")
        if page:
            write_page(name, found, chosen)
        for line in study.main(found):
            click.echo(line)


if __name__ == "__main__":
    main()

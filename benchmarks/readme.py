"""The tables of README.md: rows and columns of those in docs/, which other benchmarks write.

python -m benchmarks.readme
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks.pages import read_table, table, write_between
from benchmarks.peers.results import MARK
from benchmarks.retention.asking import DEFAULT
from benchmarks.retention.tables import SELECTORS_ABOVE

README = Path("README.md")
RETENTION, BENCHMARKS = Path("docs/retention.md"), Path("docs/benchmarks.md")
ANSWERS = "<!-- python -m benchmarks.readme writes these answers from docs/retention.md -->"
TIMES = "<!-- python -m benchmarks.readme writes these times from docs/benchmarks.md -->"

SELECTORS = (DEFAULT, "cdpruner", "cdpruner-openvino-frames", "random")
"""Those of docs/retention.md that README shows; the first stands beside the name of its checkpoint."""


class Case(NamedTuple):
    """A row of docs/benchmarks.md that README shows, and what README calls it."""

    tool: str
    precision: str
    keep: str
    title: str


CASES = (
    Case("foveate, vision in OpenVINO", "int4", "0.25", "**foveate int4, vision in OpenVINO**"),
    Case("foveate", "int8", "0.25", "**foveate int8**"),
    Case("foveate, vision in OpenVINO", "int4", "1", "foveate int4, vision in OpenVINO"),
    Case("OpenVINO GenAI", "int4", "0.25", "OpenVINO GenAI int4, CDPruner"),
    Case("OpenVINO GenAI", "int4", "1", "OpenVINO GenAI int4"),
    Case("transformers", "bf16", "1", "transformers bf16"),
)


class Figure(NamedTuple):
    """A column of docs/benchmarks.md that README shows.

    Attributes:
        name: its heading there.
        step: what README rounds to.
        best: picks the one in bold, with all within 1 % of it; None leaves all plain.
    """

    name: str
    step: Decimal
    best: Callable[[Iterable[Decimal]], Decimal] | None


FIGURES = {
    "vision s": Figure("vision s", Decimal("0.1"), None),
    "prefill s": Figure("prefill s", Decimal("0.01"), min),
    "first token s": Figure("TTFT s", Decimal("0.1"), min),
    "tokens/s": Figure("decode tokens/s", Decimal("0.1"), max),
    "peak GiB": Figure("peak RSS GiB", Decimal("0.1"), min),
}
"""By README's headings."""


def answers(page: str) -> Iterator[str]:
    """What stays right, a row for each checkpoint and selector, from the text of docs/retention.md."""
    found = {kind: {row["selector"]: row for row in read_table(page, above)} for kind, above in SELECTORS_ABOVE.items()}
    columns = [head.split(", ") for head in found["image"]["random"] if head.startswith("`")]
    checkpoints, keeps = (list(dict.fromkeys(parts)) for parts in zip(*columns, strict=True))

    def share(kind: str, keep: str, row: tuple[str, str]) -> str:
        checkpoint, selector = row
        return found[kind][selector][f"{checkpoint}, {keep}"].partition(" ")[0]

    def title(row: tuple[str, str]) -> str:
        checkpoint, selector = row
        return f"{checkpoint}, **{selector}**" if selector == DEFAULT else selector

    shares = {f"{kind}, keep {keep}": partial(share, kind, keep) for kind in found for keep in keeps}
    yield from table(product(checkpoints, SELECTORS), {"": title, **shares})
    yield from re.findall(r"^Per cent, with 95 % intervals; (.*)$", page, re.MULTILINE)


def times(page: str) -> Iterator[str]:
    """Time and memory of chosen cases, as far as they were measured, from the text of docs/benchmarks.md."""
    measured = {(row["tool"], row["precision"], row["keep"]): row for row in read_table(page, MARK)}
    rows = {case: measured[case[:3]] for case in CASES if case[:3] in measured}

    def cell(figure: Figure, case: Case) -> str:
        value, step, best = _number(rows[case], figure), figure.step, figure.best
        text = str(value.quantize(step, ROUND_HALF_UP))
        if not best:
            return text
        first = best(_number(row, figure) for row in rows.values())
        return f"**{text}**" if abs(value - first) <= first / 100 else text

    heads: dict[str, Callable[[Case], str]] = {"": lambda case: case.title, "keep": lambda case: case.keep}
    return table(rows, heads | {head: partial(cell, figure) for head, figure in FIGURES.items()})


def _number(row: dict[str, str], figure: Figure) -> Decimal:
    return Decimal(row[figure.name].partition(" ")[0])


def write_readme() -> None:
    """Writes both tables into README.md."""
    write_between(README, ANSWERS, list(answers(RETENTION.read_text())))
    write_between(README, TIMES, list(times(BENCHMARKS.read_text())))


@click.command(help=__doc__)
def main() -> None:
    write_readme()


if __name__ == "__main__":
    main()

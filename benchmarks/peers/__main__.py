"""Measures foveate beside other tools: Qwen2-VL-2B's shape with random weights, one 1008x672 image, one question.

    python -m benchmarks.peers --work out/peers

Each tool gets an environment of its own and the settings it recommends. Every round runs each tool at each precision in a
process of its own, one after the other: it loads, answers to warm up, and then once for each keep ratio. What was measured
stays in WORK, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import click

from benchmarks.pages import write_between
from benchmarks.peers.peers import PEERS, PRECISIONS, cases
from benchmarks.peers.results import MARK, Line, Record, Results, draw, lines, settings_table, table
from benchmarks.peers.workplace import Workplace, commands
from benchmarks.readme import write_readme

PAGE = Path("docs/benchmarks.md")


def measure(
    place: Workplace, results: Results, chosen: Sequence[tuple[str, str]], rounds: int, threads: int, new_tokens: int
) -> None:
    """Fills in what `results` lacks: round by round, so that a busy minute of the machine does not hit one tool alone."""
    for number in range(rounds):
        for name, precision in chosen:
            if not results.has(name, precision, number):
                click.echo(f"round {number + 1} of {rounds}: {name} {precision}", err=True)
                facts = {"peer": name, "precision": precision, "round": number, "date": date.today().isoformat()}
                results.add({**facts, **place.measure(name, precision, threads, new_tokens)})


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.processor()


def write_page(measured: Sequence[Line], records: Sequence[Record], place: Workplace, threads: int, new_tokens: int) -> None:
    """Puts the tables between the marks of the page, and the chart beside it."""
    names = list(dict.fromkeys(line.peer for line in measured))
    shape = "true shape" if place.layers is None else f"{place.layers} layers of the decoder and of the tower only"
    rounds = max(line.rounds for line in measured)
    spread = " Medians; of TTFT with the smallest and the largest." if rounds > 1 else ""
    sections = [
        f"Measured {max(record['date'] for record in records)} on {processor()}; threads: {threads}; {shape}; "
        f"rounds: {rounds}; new tokens: {new_tokens}.{spread}",
        *table(measured),
        "![Seconds to the first token and decoded tokens per second of each tool](benchmarks.png)",
        *settings_table(records),
        "The models are made with:",
        "\n".join(f"    {command}" for command in commands(names)),
    ]
    draw(measured, PAGE.with_suffix(".png"))
    write_between(PAGE, MARK, sections)


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for environments, models and results.")
@click.option("--peers", "names", multiple=True, type=click.Choice(list(PEERS)), default=list(PEERS), show_default=True)
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), default=PRECISIONS, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Rounds.")
@click.option("--threads", default=os.cpu_count(), show_default="all", help="CPU threads of each tool.")
@click.option("--new-tokens", default=32, show_default=True)
@click.option("--layers", type=int, help="Of the decoder and of the tower, for a quick try.")
@click.option("--page/--no-page", default=True, show_default=True, help="Whether to write docs/benchmarks.md and README.md.")
def main(
    work: Path,
    names: Sequence[str],
    precisions: Sequence[str],
    repeats: int,
    threads: int,
    new_tokens: int,
    layers: int | None,
    page: bool,
) -> None:
    chosen = cases(names, precisions)
    place = Workplace(work, layers)
    results = Results(place.shape / f"results-{threads}-threads-{new_tokens}-tokens.json")
    for name, precision in chosen:
        click.echo(f"model of {name} {precision}", err=True)
        place.model(name, precision)
    measure(place, results, chosen, repeats, threads, new_tokens)
    measured = list(lines(results.records))
    if page:
        write_page(measured, results.records, place, threads, new_tokens)
        write_readme()
    for row in table(measured):
        click.echo(row)


if __name__ == "__main__":
    main()

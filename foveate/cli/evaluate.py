"""`foveate evaluate`: what fewer visual tokens cost in right answers."""

from __future__ import annotations

from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from foveate.cli.options import SessionChoice, session_options
from foveate.cli.progress import Bar
from foveate.cli.tables import open_console
from foveate.engines.errors import RequestError
from foveate.evaluate import REPORTS, Results, Table, evaluate_bundle, remark, tables


@click.command("evaluate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--keep",
    "keeps",
    default="1,0.5,0.25,0.125",
    show_default=True,
    help="Shares of the visual tokens to keep, with commas. 1 is always measured, once for all selectors.",
)
@click.option(
    "--select",
    "selectors",
    default="foveated,attention,random",
    show_default=True,
    help="Selectors, with commas; the others are held against the first.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Folder of 'foveate scorer label CHECKPOINT DATA --wrong': what selector oracle chooses by.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the report, e.g. report/.")
@click.option("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@click.option("--force", is_flag=True, help="Start anew, whatever the folder has of an earlier run.")
@session_options()
def evaluate_command(
    bundle: Path,
    data: Path,
    keeps: str,
    selectors: str,
    labels: Path | None,
    output: Path,
    max_new_tokens: int | None,
    force: bool,
    session: SessionChoice,
) -> None:
    """Ask BUNDLE the questions of DATA with fewer and fewer visual tokens, and count the right answers.

    DATA is a folder with a questions.jsonl. The same command again goes on where a stopped one ended.
    """
    with Bar("Asking") as bar:
        results = evaluate_bundle(
            bundle,
            data,
            output,
            _ratios(keeps),
            _parts(selectors),
            labels=labels,
            max_new_tokens=max_new_tokens,
            backend=session.backend,
            options=session.options,
            vision_backend=session.vision_backend,
            force=force,
            progress=bar.show,
        )
    _print(results, output)


def _print(results: Results, output: Path) -> None:
    console = open_console()
    for table in tables(results):
        console.print(_printable(table), "")
    for line in filter(None, [remark(results), f"Report: {', '.join(str(output / name) for name in REPORTS)}"]):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _ratios(text: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        RequestError: one of them is no number.
    """
    try:
        return [float(part) for part in _parts(text)]
    except ValueError as error:
        raise RequestError(f"--keep is '{text}', expected numbers with commas. Use --keep 1,0.5,0.25.") from error


def _printable(table: Table) -> RichTable:
    """The table for a terminal, with a line between keep ratios."""
    printable = RichTable(title=table.title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for index, column in enumerate(table.columns):
        printable.add_column(escape(column), justify="left" if index == 1 else "right", no_wrap=index < 2, overflow="fold")
    for row, following in zip(table.rows, [*table.rows[1:], None], strict=True):
        printable.add_row(*row, end_section=following is None or row[0] != following[0])
    return printable

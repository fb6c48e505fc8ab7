"""Tables that benchmarks write into Markdown pages, and read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from foveate.evaluate import Estimate

END = "<!-- end of what it writes -->"

_Row = TypeVar("_Row")


def table(rows: Iterable[_Row], columns: Mapping[str, Callable[[_Row], str]]) -> Iterator[str]:
    """The lines of a table: each column has a heading, and says what its cell of a row is."""
    yield _line(columns)
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield _line(cell(row) for cell in columns.values())


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def read_table(text: str, above: str) -> list[dict[str, str]]:
    """The first table below a line of a page: the cells of each row by their headings.

    Raises:
        ValueError: the page lacks the line, or a table below it.
    """
    _, found, below = text.partition(f"\n{above}\n")
    rows: list[list[str]] = []
    for line in below.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    if not found or not rows:
        raise ValueError(f"there is no table below '{above}', expected one. Write the page anew.")
    heads, _, *cells = rows
    return [dict(zip(heads, row, strict=True)) for row in cells]


def percent(estimate: Estimate | None) -> str:
    """In per cent, with its interval."""
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} - {100 * estimate.high:.1f})"


def write_between(page: Path, begin: str, lines: Sequence[str]) -> None:
    """Puts paragraphs and rows of tables between the mark `begin` of a page and the next `END`.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text()
    if begin not in text or END not in text.partition(begin)[2]:
        raise ValueError(f"{page} lacks the marks '{begin}' and '{END}' behind it. Add them.")
    before, _, rest = text.partition(begin)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{begin}\n\n" + "\n".join(_spaced(lines)) + f"\n\n{END}{after}")


def _spaced(lines: Sequence[str]) -> Iterator[str]:
    """A blank line around everything but the rows of a table."""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        yield line
        if following and not (line.startswith("|") and following.startswith("|")):
            yield ""

"""Tables that benchmarks write into the pages of docs/."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from foveate.evaluate import Estimate, Group, Row

END = "<!-- end of what it writes -->"


def run(*arguments: object) -> None:
    """A step that is a command of its own."""
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def percent(estimate: Estimate | None, digits: int = 1) -> str:
    """In per cent, with its interval."""
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.{digits}f} ({100 * estimate.low:.{digits}f} - {100 * estimate.high:.{digits}f})"


def row_of(group: Group, selector: str, keep: float) -> Row:
    """What a selector did at a keep ratio."""
    return next(row for row in group.rows if (row.selector, row.keep) == (selector, keep))


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

"""Tables that never break a word: in a narrow terminal headings and cells take several lines, and then each row is a block."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

_LEAST_PROSE = 24
"""Width that a column of running text gets at least."""
_TOGETHER = re.compile(r"\([^()]*\)|\d %")
_NO_BREAK = "\xa0"


@dataclass(frozen=True)
class Table:
    """A table of text, which fits into the terminal that it is printed on.

    Attributes:
        titles: heads of the columns.
        rows: as many cells each.
        numbers: titles of columns that stand on the right.
        prose: titles of columns of running text, which may take several lines.
        caption: above it; empty for none.
        groups: a gap where the first cell of a row is another than that of the row before.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Container[str] = ()
    prose: Container[str] = ()
    caption: str = ""
    groups: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.caption:
            yield Text(self.caption, style="italic")
        for gap, whole_titles, whole_cells in ((2, True, True), (2, False, True), (1, False, False)):
            widths = self._widths(whole_titles, whole_cells)
            left = options.max_width - sum(widths) - gap * (len(widths) - 1)
            if left >= 0:
                yield self._table(self._grown(widths, left), gap)
                return
        yield self._blocks(options.max_width)

    def _columns(self) -> list[list[str]]:
        return [[row[place] for row in self.rows] for place in range(len(self.titles))]

    def _widths(self, whole_titles: bool, whole_cells: bool) -> list[int]:
        """The least of each column; what is not whole may take several lines."""
        widths = []
        for title, cells in zip(self.titles, self._columns(), strict=True):
            head = cell_len(title) if whole_titles else longest_word(title)
            if title in self.prose:
                body = max((max(longest_word(cell), min(_LEAST_PROSE, cell_len(cell))) for cell in cells), default=0)
            else:
                body = max((longest_line(cell) if whole_cells else longest_word(cell) for cell in cells), default=0)
            widths.append(max(head, body))
        return widths

    def _grown(self, widths: Sequence[int], left: int) -> list[int]:
        """The widths with the rest of the room: for columns whose cells it brings into one line, then for running text."""
        grown, columns = list(widths), self._columns()
        for prose in (False, True):
            for place, title in enumerate(self.titles):
                wanted = max(0, max(map(longest_line, columns[place]), default=0) - grown[place])
                if (title in self.prose) is prose and (prose or wanted <= left):
                    grown[place] += min(wanted, left)
                    left -= min(wanted, left)
        return grown

    def _table(self, widths: Sequence[int], gap: int) -> RichTable:
        table = RichTable(box=None, padding=(0, gap, 0, 0), pad_edge=False)
        for title, width in zip(self.titles, widths, strict=True):
            table.add_column(
                Text(fill(title, width)), justify="right" if title in self.numbers else "left", no_wrap=True, vertical="top"
            )
        for number, row in enumerate(self.rows):
            if self.groups and number and row[0] != self.rows[number - 1][0]:
                table.add_row()
            table.add_row(*(Text(fill(cell, width)) for cell, width in zip(row, widths, strict=True)))
        return table

    def _blocks(self, width: int) -> Text:
        """Each row as lines of title and cell."""
        lead = max(map(cell_len, self.titles)) + 2
        cells = [" ".join(cell.split("\n")) for row in self.rows for cell in row]
        beside = lead + max(map(longest_word, cells), default=0) <= width
        blocks = []
        for row in self.rows:
            lines = []
            for title, cell in zip(self.titles, row, strict=True):
                text = " ".join(cell.split("\n"))
                if beside:
                    lines.append(title.ljust(lead) + fill(text, width - lead).replace("\n", "\n" + " " * lead))
                else:
                    lines.append(fill(f"{title}: {text}", width))
            blocks.append("\n".join(lines))
        return Text("\n\n".join(blocks))


def longest_line(text: str) -> int:
    """Its width."""
    return max(map(cell_len, text.split("\n")))


def longest_word(text: str) -> int:
    """Its width; what stands in brackets counts as one word."""
    return max(map(cell_len, re.split("[ \n]", _join(text))))


def fill(text: str, width: int) -> str:
    """The text in lines of at most this width, where its words allow that."""
    lines = (wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in _join(text).split("\n"))
    return "\n".join(line for part in lines for line in part or [""]).replace(_NO_BREAK, " ")


def _join(text: str) -> str:
    return _TOGETHER.sub(lambda found: found[0].replace(" ", _NO_BREAK), text)

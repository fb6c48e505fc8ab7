"""Tables that never break a word: where a terminal is too narrow, headings take several lines, and then each row a block."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

_GAP = 2
_LEAST_PROSE = 24
"""Columns that a cell of running text gets at least."""


@dataclass(frozen=True)
class Table:
    """A table of text, which fits into the terminal that it is printed on.

    Attributes:
        titles: heads of the columns.
        rows: as many cells each.
        numbers: titles of columns that stand on the right.
        prose: titles of columns of running text, which may take several lines.
        caption: above it; empty for none.
        groups: a blank line where the first cell of a row is another than that of the row before.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Container[str] = ()
    prose: Container[str] = ()
    caption: str = ""
    groups: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        if self.caption:
            yield Text(self.caption, style="italic")
        yield self._table(widths) if sum(widths) + _GAP * (len(widths) - 1) <= options.max_width else self._blocks()

    def _widths(self, room: int) -> list[int]:
        """Of the columns: as wide as their titles in one line where there is room, else as their cells and longest words."""
        cells = [
            max((self._cell_width(title, row[place]) for row in self.rows), default=0)
            for place, title in enumerate(self.titles)
        ]
        whole = [max(cell_len(title), width) for title, width in zip(self.titles, cells, strict=True)]
        if sum(whole) + _GAP * (len(whole) - 1) <= room:
            return whole
        return [max(longest_word(title), width) for title, width in zip(self.titles, cells, strict=True)]

    def _cell_width(self, title: str, cell: str) -> int:
        if title not in self.prose:
            return max(map(cell_len, cell.split("\n")))
        return max(longest_word(cell), min(_LEAST_PROSE, cell_len(cell)))

    def _table(self, widths: Sequence[int]) -> RichTable:
        table = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for title, width in zip(self.titles, widths, strict=True):
            head = "\n".join(wrap(title, width, break_long_words=False, break_on_hyphens=False)) or title
            justify = "right" if title in self.numbers else "left"
            if title in self.prose:
                table.add_column(Text(head), justify="left", min_width=width)
            else:
                table.add_column(Text(head), justify=justify, no_wrap=True, min_width=width)
        for row, before in zip_longest(self.rows, [None, *self.rows[:-1]]):
            if self.groups and before is not None and row[0] != before[0]:
                table.add_row()
            table.add_row(*map(Text, row))
        return table

    def _blocks(self) -> Group:
        """Each row as lines of title and cell."""
        blocks: list[RichTable | str] = []
        for row in self.rows:
            block = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=False)
            block.add_column(no_wrap=True, style="bold")
            block.add_column(overflow="fold")
            for title, cell in zip(self.titles, row, strict=True):
                block.add_row(Text(title), Text(" ".join(cell.split("\n"))))
            blocks += [block, ""]
        return Group(*blocks[:-1])


def longest_word(text: str) -> int:
    """Columns of the longest word."""
    return max(map(cell_len, text.split()), default=0)

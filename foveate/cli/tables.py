"""Tables on the terminal, and in a pipe as wide as they need to be."""

from __future__ import annotations

from collections.abc import Container

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 200


def open_console() -> Console:
    """Standard output. Where nothing limits a line, no row needs a second one."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def make_table(*titles: str, numbers: Container[str] = ()) -> Table:
    """An empty table with plain columns; those in `numbers` stand on the right."""
    table = Table(box=None)
    for title in titles:
        table.add_column(title, overflow="fold", justify="right" if title in numbers else "left")
    return table

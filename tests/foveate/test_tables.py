"""Tables in narrow terminals: no word is broken, no line is wider than the terminal, nothing is lost."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from foveate.cli.tables import Table, fill, longest_word

WORDS = st.text("abcdefghij-%", min_size=1, max_size=9)
CELLS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


def printed(table: Table, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue()


@st.composite
def made(draw: st.DrawFn) -> Table:
    titles = draw(st.lists(CELLS, min_size=1, max_size=8, unique=True))
    rows = draw(st.lists(st.tuples(*(CELLS for _ in titles)), min_size=1, max_size=4))
    prose, numbers = draw(st.sets(st.sampled_from(titles))), draw(st.sets(st.sampled_from(titles)))
    return Table(titles, rows, numbers, prose, groups=draw(st.booleans()))


@given(made(), st.integers(24, 130))
def test_no_word_is_broken_or_lost(table: Table, width: int) -> None:
    lines = printed(table, width).splitlines()
    assert max(map(len, lines)) <= width
    shown = sorted(word.rstrip(":") for line in lines for word in line.split())
    cells = [cell for row in table.rows for cell in row]
    assert shown in [words([*table.titles, *cells]), words([*table.titles] * len(table.rows) + cells)]


def words(texts: list[str]) -> list[str]:
    return sorted(word for text in texts for word in text.split())


TABLE = Table(
    ("keep", "selector", "tokens", "right", "accuracy %", "retained %", "points against foveated"),
    [("0.5", "foveated", "74.8", "12/12", *["100.0 (100.0 to 100.0)"] * 2, "+0.0 (+0.0 to +0.0)")],
)


def test_first_headings_then_cells_take_several_lines_and_then_rows_are_blocks() -> None:
    assert len(printed(TABLE, 200).splitlines()) == 2
    assert [len(printed(TABLE, width).splitlines()) for width in (100, 80)] == [3, 4]
    assert "(100.0 to 100.0)" in printed(TABLE, 80)
    assert len(printed(TABLE, 60).splitlines()) == len(TABLE.titles)


def test_an_interval_stays_in_one_line() -> None:
    assert longest_word("100.0 (75.8 to 100.0)") == len("(75.8 to 100.0)")
    assert fill("100.0 (75.8 to 100.0)", 16) == "100.0\n(75.8 to 100.0)"


@pytest.mark.parametrize("width", [60, 80])
def test_running_text_takes_what_is_left(width: int) -> None:
    table = Table(("graph", "symbols"), [("score", "total_tokens, visual_tokens, instruction_tokens, batch")], (), ("symbols",))
    lines = printed(table, width).splitlines()
    assert len(lines) == (2 if width == 80 else 3)

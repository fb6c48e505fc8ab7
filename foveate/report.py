"""What every report page has: tiles, tables, charts that fit a wide and a narrow screen, and facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import msgspec
from jinja2 import DictLoader, Environment

from foveate.engines import MachineError, replace_file

_BASE = "report.html"
_Measured = TypeVar("_Measured")


@dataclass(frozen=True)
class Table:
    """A table of the page, as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure that stands out."""

    figure: str
    caption: str


@dataclass(frozen=True)
class Drawing:
    """A chart as SVG, for a wide and for a narrow screen."""

    wide: str
    narrow: str

    @classmethod
    def of(cls, draw: Callable[..., str], measured: object) -> Drawing:
        """`draw` takes what was measured, and `narrow`."""
        return cls(draw(measured), draw(measured, narrow=True))

    def __html__(self) -> str:
        return f'<div class="wide">{self.wide}</div><div class="narrow">{self.narrow}</div>'


def render_page(
    package: str,
    tiles: Sequence[Tile],
    tables: Sequence[Table],
    facts: Mapping[str, str],
    charts: Mapping[str, Drawing],
    **values: object,
) -> bytes:
    """One HTML file that needs no other.

    Args:
        package: whose `template.html` fills the blocks of the page.
        tiles: at the top.
        tables: behind the charts.
        facts: where and how it was measured.
        charts: by name, where the template puts them.
        values: for the template.
    """
    sources = {
        _BASE: files("foveate").joinpath(_BASE).read_text(),
        "page": files(package).joinpath("template.html").read_text(),
    }
    page = Environment(autoescape=True, loader=DictLoader(sources)).get_template("page")
    return page.render(tiles=tiles, tables=tables, facts=facts, charts=charts, **values).encode()


def write_files(measured: _Measured, makers: Mapping[Path | None, Callable[[_Measured], bytes]]) -> None:
    """Writes what was asked for, each file whole or not at all; nothing where the path is None.

    Raises:
        MachineError: a file can't be written.
        MissingPackageError: matplotlib is not installed.
    """
    contents = {path: make(measured) for path, make in makers.items() if path is not None}
    for path, content in contents.items():
        try:
            replace_file(path.resolve(), content)
        except OSError as error:
            raise MachineError(f"{path} can't be written: {error.strerror or error}. Choose another file.") from error


def make_json(measured: msgspec.Struct) -> bytes:
    """Everything that was measured."""
    return msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n"

"""How pages look: layouts, themes and fonts, and which split draws which of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Theme:
    """Colours of a page: paper, text, text that nobody asks about, rules, and panels that lie on the paper."""

    paper: Colour
    ink: Colour
    faint: Colour
    rule: Colour
    panel: Colour
    bar: Colour


THEMES = {
    "white": Theme((255, 255, 255), (20, 20, 20), (120, 120, 120), (190, 190, 190), (243, 244, 246), (60, 84, 130)),
    "cream": Theme((252, 247, 235), (45, 35, 25), (140, 125, 105), (205, 190, 165), (244, 235, 214), (120, 80, 50)),
    "sky": Theme((232, 241, 250), (15, 30, 55), (105, 125, 150), (170, 190, 212), (255, 255, 255), (30, 110, 150)),
    "night": Theme((24, 26, 32), (235, 235, 238), (130, 135, 145), (75, 80, 92), (38, 42, 52), (90, 70, 150)),
    "slate": Theme((44, 52, 62), (245, 245, 240), (150, 160, 170), (95, 105, 118), (58, 68, 80), (30, 36, 44)),
}

Split = Literal["train", "validation", "heldout"]


@dataclass(frozen=True)
class Layout:
    """One family of pages.

    Attributes:
        name: of it.
        themes: names of `THEMES`, one is drawn for each page.
        columns: the widest that a column of blocks may be, in cells.
        sidebar: a narrow panel at that side, or none.
        card: whether each block lies on a panel of its own.
        top: what the page begins with.
        table: how rows and columns are told apart.
        pair: what stands between a name and its value, and where the value stands.
        number: what follows the number of a line.
        button: the shape of a button.
    """

    name: str
    themes: tuple[str, ...]
    columns: float
    sidebar: Literal["", "left", "right"] = ""
    card: bool = False
    top: Literal["", "title", "bar", "tabs"] = ""
    table: Literal["open", "ruled", "striped", "grid", "headed"] = "open"
    pair: Literal["colon", "gap", "dots", "field", "right"] = "colon"
    number: str = "."
    button: Literal["round", "square", "pill", "outlined"] = "round"


LAYOUTS: dict[Split, tuple[Layout, ...]] = {
    "train": (
        Layout("letter", ("white", "cream"), 12, top="title", table="open", pair="colon", number=".", button="square"),
        Layout("report", ("white", "sky"), 9, top="title", table="ruled", pair="dots", number=")", button="round"),
        Layout("sheet", ("white", "cream", "slate"), 14, top="bar", table="striped", pair="gap", number=".", button="square"),
        Layout(
            "window", ("night", "slate", "white"), 10, "left", top="bar", table="grid", pair="field", number=")", button="round"
        ),
        Layout("board", ("sky", "night"), 8, card=True, table="ruled", pair="colon", number=".", button="pill"),
        Layout("notes", ("cream", "night", "white"), 11, card=True, top="title", table="open", pair="right", button="round"),
    ),
    "validation": (
        Layout(
            "invoice", ("white", "cream"), 10, "right", top="title", table="headed", pair="colon", number=")", button="square"
        ),
        Layout(
            "dialog", ("night", "sky"), 12, card=True, top="bar", table="striped", pair="field", number=":", button="outlined"
        ),
    ),
    "heldout": (
        Layout("slide", ("white", "slate"), 13, top="tabs", table="ruled", pair="gap", number=":", button="pill"),
        Layout(
            "phone", ("sky", "night"), 7, card=True, top="tabs", table="headed", pair="right", number=".", button="outlined"
        ),
        Layout("ledger", ("cream", "white"), 9, "right", table="grid", pair="dots", number="-", button="round"),
    ),
}
"""No two splits share a layout."""

FONTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
        *("cmr10", "cmb10", "Aileron"),
    ),
    "validation": ("cmss10", "cmtt10"),
    "heldout": ("STIXGeneral", "STIXGeneralBol", "DejaVuSansMono", "DejaVuSansMono-Bold"),
}
"""No two splits share a family. All are matplotlib's, but for Aileron, which is Pillow's own."""


@lru_cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name == "Aileron":
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


@lru_cache(maxsize=30_000)
def stamp(text: str, font: str, size: int, stretch: float = 1.0) -> Image.Image:
    """Text as a mask `L`, as tight as its ink is wide and as high as the line; `stretch` widens it."""
    face = _font(font, size)
    left, _, right, _ = face.getbbox(text)
    ascent, descent = face.getmetrics()
    tile = Image.new("L", (max(1, round(right - left)), ascent + descent), 0)
    ImageDraw.Draw(tile).text((-left, 0), text, font=face, fill=255)
    return tile if stretch == 1 else tile.resize((max(1, round(tile.width * stretch)), tile.height), Image.Resampling.BILINEAR)

"""What a page is: printed text and boxes on a flat ground, and the questions that it answers.

A page is a function of the generator it is given. Every word, letter and colour that a question names is on a page once, so
that each question has one right answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from models.documents.layouts import FONTS, LAYOUTS, THEMES, Colour, Layout, Split, Theme, stamp
from models.scenes.dataset import rng_of
from models.scenes.world import COLOURS, DIGITS, LETTERS, TEXTS, WORDS, Question, sample_grid

NAMED_TYPES = ("pair", "row", "cell")
PAGE_TYPES = (*NAMED_TYPES, "line", "button", "mark")
CELL = 28
"""Pixels of a cell's side: one visual token."""
_FILLER = tuple(
    " ".join(
        (
            "lorem ipsum dolor sit amet consectetur adipiscing elit sed eiusmod tempor incididunt labore dolore magna aliqua",
            "enim minim veniam quis nostrud exercitation ullamco laboris nisi aliquip commodo consequat duis aute irure",
            "reprehenderit voluptate velit esse cillum fugiat nulla pariatur excepteur sint occaecat cupidatat non proident",
            "sunt culpa officia deserunt mollit",
        )
    ).split()
)


@dataclass(frozen=True)
class Box:
    """A filled or outlined rectangle, in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    fill: Colour | None = None
    outline: Colour | None = None
    radius: float = 0.0


@dataclass(frozen=True)
class Text:
    """Printed text: its left edge and the middle of its line, in pixels."""

    text: str
    left: float
    middle: float
    font: str
    size: int
    ink: Colour
    stretch: float = 1.0


@dataclass(frozen=True)
class Item:
    """A text that questions ask about or name, and where it is, in pixels.

    Attributes:
        text: a word, a letter or a digit.
        left, top, right, bottom: of the text, or of the button that it is on.
        row: the text that names its row, line or field; empty for none.
        column: the text that names its column; empty for none.
        colour: of its button, or of what marks it; empty for none.
    """

    text: str
    left: float
    top: float
    right: float
    bottom: float
    row: str = ""
    column: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Page:
    """A page of `rows x columns` cells and `width x height` pixels."""

    rows: int
    columns: int
    width: int
    height: int
    layout: str
    font: str
    paper: Colour
    boxes: tuple[Box, ...]
    texts: tuple[Text, ...]
    items: tuple[Item, ...]
    questions: tuple[Question, ...]
    """All that can be asked."""


def sample_page(
    split: str, seed: int, index: int, questions: int = 1, types: Collection[str] = PAGE_TYPES
) -> tuple[Page, list[Question]]:
    """Page number `index` of a split and questions of some types about it.

    Those named `-large` have 512 to 1,024 visual tokens. What is asked for is set in 20 to 30 pixels.
    """
    rng = rng_of(split, seed, index, 100)
    rows, columns = sample_grid(rng, *((512, 1024) if split.endswith("-large") else (96, 400)))
    page = draw_page(rng, look_of(split), rows, columns, *sample_pixels(rng, rows, columns))
    return page, choose_questions(rng, page, questions, types)


def look_of(split: str) -> Split:
    """Which layouts and fonts a split draws."""
    look: Split = "train" if split == "train" else "validation" if split.startswith("validation") else "heldout"
    return look


def sample_pixels(rng: np.random.Generator, rows: int, columns: int) -> tuple[int, int]:
    """Width and height: whole cells for half of the pages; the others are resized on the way in."""
    width, height = columns * CELL, rows * CELL
    if rng.random() < 0.5:
        width, height = width + int(rng.integers(-13, 14)), height + int(rng.integers(-13, 14))
    return width, height


def choose_questions(rng: np.random.Generator, page: Page, count: int, types: Collection[str] = PAGE_TYPES) -> list[Question]:
    """Up to `count` of a page's questions of some types, these in turn."""
    order = [page.questions[index] for index in rng.permutation(len(page.questions)) if page.questions[index].type in types]
    ranks: dict[str, int] = {}
    ranked = []
    for question in order:
        ranks[question.type] = ranks.get(question.type, -1) + 1
        ranked.append((ranks[question.type], question))
    chosen = [question for _, question in sorted(ranked, key=lambda pair: pair[0])[:count]]
    return [chosen[index] for index in rng.permutation(len(chosen))]


def draw_page(
    rng: np.random.Generator,
    look: Split,
    rows: int,
    columns: int,
    width: int,
    height: int,
    sizes: tuple[int, int] = (20, 30),
) -> Page:
    """A page of a given shape whose asked texts are set in `sizes` pixels; there is always something to ask."""
    layout = LAYOUTS[look][int(rng.integers(len(LAYOUTS[look])))]
    font = str(rng.choice(FONTS[look]))
    while True:
        writer = _Writer(rng, layout, THEMES[str(rng.choice(layout.themes))], font, sizes)
        writer.fill(width, height)
        if writer.questions:
            break
    return Page(
        rows,
        columns,
        width,
        height,
        layout.name,
        font,
        writer.theme.paper,
        tuple(writer.boxes),
        tuple(writer.texts),
        tuple(writer.items),
        tuple(writer.questions),
    )


def draw_sheet(rng: np.random.Generator, rows: int, columns: int, sizes: tuple[int, int]) -> Page:
    """A page to learn reading from: full of words, letters and digits in all fonts of training, many of them the value of the
    one before, and nothing to ask."""
    writer = _Writer(rng, LAYOUTS["train"][0], THEMES[str(rng.choice(list(THEMES)))], "", sizes)
    width, height = columns * CELL, rows * CELL
    top = float(rng.uniform(0, 12))
    while top < height - 26:
        pitch, left = float(rng.uniform(24, 40)), float(rng.uniform(2, 30))
        while True:
            writer.font, writer.stretch = str(rng.choice(FONTS["train"])), float(rng.choice((0.88, 1.0, 1.14)))
            text, size = str(rng.choice(TEXTS[1:])), int(min(rng.integers(sizes[0], sizes[1] + 1), pitch - 6))
            on_button = rng.random() < 0.25
            right = left + stamp(text, writer.font, size, writer.stretch).width + (20 if on_button else 6)
            if right > width:
                break
            if on_button:
                writer._button(text, str(rng.choice(list(COLOURS))), _Area(left, top, right, top + pitch - 2), size)
            else:
                writer._item(text, left, top + pitch / 2, size)
                named = right + size * float(rng.uniform(0.2, 0.9))
                value = str(rng.choice(TEXTS[1:]))
                if rng.random() < 0.5 and named + stamp(value, writer.font, size, writer.stretch).width < width:
                    if rng.random() < 0.5:
                        writer._print(str(rng.choice((":", ".", ")"))), right - 5, top + pitch / 2, size, writer.theme.ink)
                    right = writer._item(value, named, top + pitch / 2, size, row=text) + 16
            left = right + float(rng.exponential(10))
        top += pitch
    return Page(
        *(rows, columns, width, height, "sheet", "all", writer.theme.paper),
        *(tuple(writer.boxes), tuple(writer.texts), tuple(writer.items), ()),
    )


@dataclass(frozen=True)
class _Area:
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass
class _Writer:
    """Fills one page from top to bottom; each block returns where it ended."""

    rng: np.random.Generator
    layout: Layout
    theme: Theme
    font: str
    sizes: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = [str(word) for word in self.rng.permutation(WORDS)]
        self.letters = [str(letter) for letter in self.rng.permutation(LETTERS)]
        self.colours = [str(colour) for colour in self.rng.permutation(list(COLOURS))]
        self.stretch = float(self.rng.choice((0.88, 1.0, 1.0, 1.14)))
        self.size = int(self.rng.integers(self.sizes[0], self.sizes[1] + 1))
        self.listed = False

    def fill(self, width: int, height: int) -> None:
        """The whole page: what it begins with, a panel at the side, and columns of blocks."""
        margin = float(self.rng.uniform(0.4, 1.2)) * CELL
        area = self._top(_Area(margin, margin, width - margin, height - margin), width)
        columns = self._columns(area, height)
        turns = ["pairs", "lines", "table", "buttons"]
        kinds = [turns[index] for index in self.rng.permutation(len(turns))]
        # One block into each column in turn, so that no column takes all words.
        tops = [column.top for column in columns]
        for turn in range(40):
            number = turn % len(columns)
            column = columns[number]
            left = _Area(column.left, tops[number], column.right, column.bottom)
            if left.height < 1.5 * CELL:
                if all(c.bottom - top < 1.5 * CELL for c, top in zip(columns, tops, strict=True)):
                    break
                continue
            kind = "text" if turn and self.rng.random() < 0.3 else kinds[0]
            if kind != "text":
                kinds = [*kinds[1:], kind]
            tops[number] = self._block(kind, left) + float(self.rng.uniform(0.5, 1.3)) * CELL

    def _top(self, area: _Area, width: int) -> _Area:
        size = int(self.rng.integers(20, 34))
        room = size + 22.0
        title = " ".join(self._fillers(3)).capitalize()
        if not self.layout.top or area.height < 7 * CELL:
            return area
        if self.layout.top == "title":
            self._print(title, area.left, area.top + size / 2, size, self.theme.ink, until=area.right)
            return _Area(area.left, area.top + room, area.right, area.bottom)
        self.boxes.append(Box(0, 0, width, room, self.theme.bar))
        if self.layout.top == "bar":
            self._print(title, area.left, room / 2, size, (245, 245, 245), until=area.right)
        else:
            left = area.left
            for word in self._fillers(5):
                left = self._print(word, left, room / 2, 18, (225, 225, 225), until=area.right) + CELL
        return _Area(area.left, room + 14, area.right, area.bottom)

    def _columns(self, area: _Area, height: int) -> list[_Area]:
        gap = float(self.rng.uniform(0.7, 1.3)) * CELL
        wide = [area]
        if self.layout.sidebar and area.width > 13 * CELL:
            side = float(self.rng.uniform(4.5, 6)) * CELL
            if self.layout.sidebar == "left":
                bar, rest = _Area(area.left, area.top, area.left + side, area.bottom), area.left + side + 2 * gap
                wide = [bar, _Area(rest, area.top, area.right, area.bottom)]
                self.boxes.append(Box(0, area.top - 12, bar.right + gap, height, self.theme.panel))
            else:
                bar, rest = _Area(area.right - side, area.top, area.right, area.bottom), area.right - side - 2 * gap
                wide = [bar, _Area(area.left, area.top, rest, area.bottom)]
                self.boxes.append(Box(bar.left - gap, area.top - 12, area.right + 400, height, self.theme.panel))
        main = wide[-1]
        count = max(1, round(main.width / CELL / self.layout.columns))
        step = (main.width + gap) / count
        parts = [
            _Area(main.left + number * step, main.top, main.left + (number + 1) * step - gap, main.bottom)
            for number in range(count)
        ]
        return [*wide[:-1], *parts]

    def _block(self, kind: str, area: _Area) -> float:
        """Draws a block at the top of an area and returns its lower edge."""
        if not self.layout.card:
            return self._write(kind, area)
        inside = float(self.rng.uniform(10, 20))
        place = len(self.boxes)
        end = (
            self._write(kind, _Area(area.left + inside, area.top + inside, area.right - inside, area.bottom - inside)) + inside
        )
        if end > area.top + 2 * inside:
            card = Box(area.left, area.top, area.right, end, self.theme.panel, self.theme.rule, radius=6)
            self.boxes.insert(place, card)
        return end

    def _write(self, kind: str, area: _Area) -> float:
        size = int(np.clip(self.size + self.rng.integers(-3, 4), *self.sizes))
        pitch = max(30.0, size * float(self.rng.uniform(1.35, 2.1)))
        room = int((area.bottom - area.top) // pitch)
        if kind == "lines" and not self.listed and room >= 2:
            return self._lines(area, size, pitch, room)
        if kind == "pairs" and room >= 2 and len(self.words) + len(self.letters) > 4:
            return self._pairs(area, size, pitch, room)
        if kind == "table" and room >= 3 and len(self.words) > 1 and len(self.letters) > 2:
            return self._table(area, size, pitch, room)
        if kind == "buttons" and room >= 1 and len(self.colours) > 1 and len(self.words) + len(self.letters) > 1:
            return self._buttons(area, size)
        return self._paragraph(area)

    def _take(self, count: int, words: float = 0.65) -> list[str]:
        """Up to `count` texts that the page has not used."""
        taken: list[str] = []
        while len(taken) < count and (self.words or self.letters):
            pool = self.words if self.words and (self.rng.random() < words or not self.letters) else self.letters
            taken.append(pool.pop())
        return taken

    def _lines(self, area: _Area, size: int, pitch: float, room: int) -> float:
        self.listed = True
        says = self._take(int(self.rng.integers(2, 8)) if room > 2 else 2)[: min(room, 9)]
        indent = area.left + size * float(self.rng.uniform(1.25, 1.7))
        for number, text in enumerate(says, start=1):
            middle = area.top + (number - 0.5) * pitch
            at = len(self.items)
            end = self._item(str(number), area.left, middle, size)
            self._print(self.layout.number, end + 1, middle, size, self.theme.ink)
            wide = stamp(text, self.font, size, self.stretch).width
            colour, ink = self._mark(_Area(indent - 5, middle - pitch / 2 + 1, indent + wide + 6, middle + pitch / 2 - 1))
            right = self._item(text, indent, middle, size, row=str(number), colour=colour, ink=ink)
            self._tail(right, middle, size, area.right)
            if colour:
                self.questions.append(Question("mark", f"What does the {colour} line say?", text, (at + 1,)))
                self.questions.append(Question("mark", f"What colour is the line with {text}?", colour, (at + 1,)))
            self.questions.append(Question("line", f"What does line {number} say?", text, (at, at + 1)))
            self.questions.append(Question("line", f"What line says {text}?", str(number), (at, at + 1)))
        return area.top + len(says) * pitch

    def _tail(self, left: float, middle: float, size: int, until: float) -> None:
        """Faint words behind a line, on some."""
        if self.rng.random() < 0.4:
            for word in self._fillers(int(self.rng.integers(1, 4))):
                left = self._print(word, left + size * 0.6, middle, max(12, size - 4), self.theme.faint, until=until)

    def _pairs(self, area: _Area, size: int, pitch: float, room: int) -> float:
        names = self._take(min(room, int(self.rng.integers(2, 7))))
        widest = max(stamp(name, self.font, size, self.stretch).width for name in names)
        gap = size * float(self.rng.uniform(0.5, 1.1))
        style = self.layout.pair
        right = min(area.right, area.left + widest + float(self.rng.uniform(1.5, 2.5)) * CELL)
        for number, name in enumerate(names):
            middle = area.top + (number + 0.5) * pitch
            value = (
                self._take(1)[0] if self.rng.random() < 0.2 and self.words and self.letters else str(self.rng.choice(DIGITS))
            )
            wide = stamp(value, self.font, size, self.stretch).width
            at = len(self.items)
            end = self._item(name, area.left, middle, size)
            left = max(right - wide, end + 8) if style in ("dots", "right") else end + gap
            if style == "colon":
                self._print(":", end + 2, middle + size * 0.1, size, self.theme.ink)
            elif style == "dots":
                for x in np.arange(end + size * 0.5, left - size * 0.5, 9):
                    self.boxes.append(Box(x, middle + size * 0.3, x + 1, middle + size * 0.3 + 1, self.theme.faint))
            elif style == "right" and number:
                self.boxes.append(Box(area.left, middle - pitch / 2, right, middle - pitch / 2, self.theme.rule))
            elif style == "field":
                half = min(pitch / 2 - 2, size * 0.75)
                field = Box(left - 8, middle - half, left + wide + 1.2 * CELL, middle + half, None, self.theme.rule, 4)
                self.boxes.append(field)
            colour, ink = self._mark(_Area(left - 6, middle - pitch / 2 + 1, left + wide + 8, middle + pitch / 2 - 1))
            self._item(value, left, middle, size, row=name, colour=colour, ink=ink)
            if colour:
                self.questions.append(Question("mark", f"What value is {colour}?", value, (at + 1,)))
            self.questions.append(Question("pair", f"What value is beside {name}?", value, (at, at + 1)))
        return area.top + len(names) * pitch

    def _table(self, area: _Area, size: int, pitch: float, room: int) -> float:
        names = self._take(min(room - 1, int(self.rng.integers(2, 6))), words=0.8)
        first = max(stamp(name, self.font, size, self.stretch).width for name in names) + size * float(
            self.rng.uniform(0.4, 0.9)
        )
        step = float(self.rng.uniform(1.3, 2.0)) * CELL
        count = int(np.clip((area.width - first) // step, 1, int(self.rng.integers(1, 3))))
        heads = [self.letters.pop() for _ in range(min(count, len(self.letters)))]
        right, bottom = area.left + first + len(heads) * step, area.top + (len(names) + 1) * pitch
        self._rules(area, first, step, pitch, len(names) + 1, len(heads), right)
        head_at = len(self.items)
        for column, head in enumerate(heads):
            self._item(head, area.left + first + column * step + step * 0.15, area.top + pitch / 2, size)
        for row, name in enumerate(names, start=1):
            middle = area.top + (row + 0.5) * pitch
            name_at = len(self.items)
            bar = _Area(area.left, middle - pitch / 2 + 1, right, middle + pitch / 2 - 2)
            colour, ink = self._mark(bar) if len(heads) == 1 else ("", None)
            self._item(name, area.left + 4, middle, size, colour=colour, ink=ink)
            for column, head in enumerate(heads):
                value, at, left = str(self.rng.choice(DIGITS)), len(self.items), area.left + first + (column + 0.15) * step
                self._item(value, left, middle, size, row=name, column=head, colour=colour, ink=ink)
                if colour:
                    self.questions.append(Question("mark", f"What value is in the {colour} row?", value, (at,)))
                    self.questions.append(Question("mark", f"What colour is row {name}?", colour, (name_at,)))
                if len(heads) == 1:
                    self.questions.append(Question("row", f"What value is in row {name}?", value, (name_at, at)))
                else:
                    text = f"What value is in row {name}, column {head}?"
                    self.questions.append(Question("cell", text, value, (name_at, head_at + column, at)))
        return bottom

    def _rules(self, area: _Area, first: float, step: float, pitch: float, rows: int, columns: int, right: float) -> None:
        """What tells rows and columns of a table apart."""
        style, line = self.layout.table, self.theme.rule
        for row in range(rows):
            top = area.top + row * pitch
            if style == "striped" and row % 2 == 0:
                self.boxes.append(Box(area.left, top, right, top + pitch - 1, self.theme.rule if not row else self.theme.panel))
            if style == "headed" and row == 0:
                self.boxes.append(Box(area.left, top, right, top + pitch - 1, line))
            if style in ("ruled", "grid"):
                self.boxes.append(Box(area.left, top + pitch - 1, right, top + pitch - 1, line))
        if style == "open":
            self.boxes.append(Box(area.left, area.top + pitch - 2, right, area.top + pitch - 1, self.theme.ink))
        if style == "grid":
            self.boxes.append(Box(area.left, area.top, right, area.top + rows * pitch - 1, None, line))
            for column in range(columns):
                x = area.left + first + column * step
                self.boxes.append(Box(x, area.top, x, area.top + rows * pitch - 1, line))

    def _buttons(self, area: _Area, size: int) -> float:
        high = size + float(self.rng.uniform(12, 22))
        left, top = area.left, area.top
        for _ in range(int(self.rng.integers(1, 5))):
            if not self.colours or top + high > area.bottom:
                break
            taken = self._take(1)
            if not taken:
                break
            wide = stamp(taken[0], self.font, size, self.stretch).width + float(self.rng.uniform(20, 44))
            if left > area.left and left + wide > area.right:
                left, top = area.left, top + high + 12
                if top + high > area.bottom:
                    (self.words if taken[0] in WORDS else self.letters).append(taken[0])
                    break
            self._button(taken[0], self.colours.pop(), _Area(left, top, left + wide, top + high), size)
            left += wide + float(self.rng.uniform(8, 20))
        return top + high

    def _mark(self, area: _Area) -> tuple[str, Colour | None]:
        """A colour behind a text and the ink to print on it, or neither; each colour is on a page once."""
        if not self.colours or self.rng.random() < 0.45:
            return "", None
        colour = self.colours.pop()
        shade = self._shade(colour)
        self.boxes.append(Box(area.left, area.top, area.right, area.bottom, shade))
        return colour, _on(shade)

    def _shade(self, colour: str) -> Colour:
        red, green, blue = (int(np.clip(c + self.rng.integers(-14, 15), 0, 255)) for c in COLOURS[colour])
        return red, green, blue

    def _button(self, text: str, colour: str, area: _Area, size: int) -> None:
        shade = self._shade(colour)
        style = self.layout.button
        radius = {"square": 0, "round": 6, "outlined": 3, "pill": area.height / 2}[style]
        outline = self.theme.ink if style == "outlined" else None
        self.boxes.append(Box(area.left, area.top, area.right, area.bottom, shade, outline, radius))
        wide = stamp(text, self.font, size, self.stretch).width
        self._print(text, (area.left + area.right - wide) / 2, (area.top + area.bottom) / 2, size, _on(shade))
        at = len(self.items)
        self.items.append(Item(text, area.left, area.top, area.right, area.bottom, colour=colour))
        self.questions.append(Question("button", f"What colour is the button with {text}?", colour, (at,)))
        self.questions.append(Question("button", f"What is on the {colour} button?", text, (at,)))

    def _paragraph(self, area: _Area) -> float:
        size = int(self.rng.integers(11, 19))
        pitch = size * 1.5
        lines = min(int(self.rng.integers(1, 7)), int((area.bottom - area.top) // pitch))
        for line in range(lines):
            left = area.left
            until = area.right if line + 1 < lines else area.left + area.width * 0.6
            while left < until:
                after = self._print(
                    self._fillers(1)[0], left, area.top + (line + 0.5) * pitch, size, self.theme.faint, until=until
                )
                if after == left:
                    break
                left = after + size * 0.35
        return area.top + max(1, lines) * pitch

    def _fillers(self, count: int) -> list[str]:
        return [_FILLER[index] for index in self.rng.integers(len(_FILLER), size=count)]

    def _print(self, text: str, left: float, middle: float, size: int, ink: Colour, until: float | None = None) -> float:
        """Prints a text unless it reaches beyond `until`; returns its right edge."""
        wide = stamp(text, self.font, size, self.stretch).width
        if until is not None and left + wide > until:
            return left
        self.texts.append(Text(text, left, middle, self.font, size, ink, self.stretch))
        return left + wide

    def _item(
        self,
        text: str,
        left: float,
        middle: float,
        size: int,
        row: str = "",
        column: str = "",
        colour: str = "",
        ink: Colour | None = None,
    ) -> float:
        """Prints a text that questions know; returns its right edge."""
        right = self._print(text, left, middle, size, ink or self.theme.ink)
        self.items.append(Item(text, left, middle - size / 2, right, middle + size / 2, row, column, colour))
        return right


def _on(shade: Colour) -> Colour:
    """The ink that is legible on a colour."""
    return (255, 255, 255) if sum(shade) < 400 else (10, 10, 10)


def repeated_share(pixels: np.ndarray) -> float:
    """Share of cells whose pixels are exactly those of the cell to the left or above, of uint8 `[height, width, 3]`."""
    rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    cells = pixels[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL, 3).transpose(0, 2, 1, 3, 4)
    equal = np.zeros((rows, columns), bool)
    equal[:, 1:] |= (cells[:, 1:] == cells[:, :-1]).all(axis=(2, 3, 4))
    equal[1:] |= (cells[1:] == cells[:-1]).all(axis=(2, 3, 4))
    return float(equal.mean())

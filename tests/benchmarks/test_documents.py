"""Documents, tables and user interfaces: one right answer each, and held out by layout and font."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from models.documents.layouts import FONTS, LAYOUTS, THEMES
from models.documents.page import CELL, PAGE_TYPES, Page, repeated_share, sample_page
from models.documents.render import render_page
from models.scenes.cells import View, label_cells
from models.scenes.checkpoint import build_tokenizer
from models.scenes.world import COLOURS, DIGITS, TEXTS
from models.scenes.write import main

SPLITS = ("train", "validation", "validation-large", "heldout", "heldout-large")


def pages(split: str, count: int = 12) -> list[Page]:
    return [sample_page(split, 5, index)[0] for index in range(count)]


def test_a_page_is_a_function_of_its_split_seed_and_index() -> None:
    page, asked = sample_page("train", 1, 2, 4)
    again = sample_page("train", 1, 2, 4)
    assert (page, asked) == again
    assert np.array_equal(np.asarray(render_page(page)), np.asarray(render_page(again[0])))
    others = [sample_page("train", 1, 3, 4), sample_page("train", 2, 2, 4), sample_page("heldout", 1, 2, 4)]
    assert all(other[0] != page for other in others)


def test_no_two_splits_share_a_layout_or_a_family_of_fonts() -> None:
    families = {look: {font.split("-")[0].removesuffix("Bol") for font in names} for look, names in FONTS.items()}
    for one, other in itertools.combinations(("train", "validation", "heldout"), 2):
        assert not families[one] & families[other]
        assert not {layout.name for layout in LAYOUTS[one]} & {layout.name for layout in LAYOUTS[other]}
        assert not {_drawn(layout) for layout in LAYOUTS[one]} & {_drawn(layout) for layout in LAYOUTS[other]}
    assert all(theme in THEMES for layouts in LAYOUTS.values() for layout in layouts for theme in layout.themes)


def _drawn(layout: object) -> tuple[object, ...]:
    return tuple(value for name, value in vars(layout).items() if name not in ("name", "themes"))


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_draws_its_own_layouts_and_fonts(split: str) -> None:
    look = split.split("-")[0]
    drawn = pages(split, 30)
    assert {page.layout for page in drawn} == {layout.name for layout in LAYOUTS[look]}
    assert {text.font for page in drawn for text in page.texts} <= set(FONTS[look])
    tokens = [page.rows * page.columns for page in drawn]
    assert (min(tokens) >= 512 and max(tokens) <= 1024) if split.endswith("-large") else max(tokens) <= 400


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_one_right_answer(split: str) -> None:
    """What a question names is on the page once, and its answer is what the items say."""
    for page in pages(split):
        assert len({question.text for question in page.questions}) == len(page.questions) > 0
        named = [item for item in page.items if not item.row]
        texts = [item.text for item in page.items if item.text not in DIGITS]
        colours = [item.colour for item in page.items if item.colour and not (item.row and item.column)]
        numbers = [item.text for item in named if item.text in DIGITS]  # of lines
        assert all(len(set(names)) == len(names) for names in (texts, colours, numbers))
        for question in page.questions:
            items = [page.items[index] for index in question.needs]
            assert question.answer == _read(page, question.text), question
            said = {fact for item in items for fact in (item.text, item.colour)}
            assert question.answer in said
            assert question.type in PAGE_TYPES


def test_pages_are_asked_questions_of_every_type() -> None:
    for look in ("train", "validation-large", "heldout-large"):
        assert {question.type for page in pages(look, 20) for question in page.questions} == set(PAGE_TYPES)


def _read(page: Page, text: str) -> str:
    """The answer, from what is printed where alone."""
    words = text.rstrip("?").replace(",", "").split()
    last = words[-1]
    if text.startswith("What value is beside") or (text.startswith("What value is in row") and "column" not in words):
        found = [item.text for item in page.items if item.row == last]
    elif "column" in words:
        found = [item.text for item in page.items if (item.row, item.column) == (words[5], last)]
    elif text.startswith("What value is in the"):
        found = [item.text for item in page.items if item.colour == words[5] and item.row]
    elif text.startswith("What value is"):
        found = [item.text for item in page.items if item.colour == last]
    elif text.startswith("What does the"):
        found = [item.text for item in page.items if item.colour == words[3]]
    elif text.startswith("What does line"):
        found = [item.text for item in page.items if item.row == words[3]]
    elif text.startswith("What line says"):
        found = [item.row for item in page.items if item.text == last]
    elif text.startswith("What is on the"):
        found = [item.text for item in page.items if item.colour == words[4]]
    else:
        found = [item.colour for item in page.items if item.text == last]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("split", SPLITS)
def test_items_lie_on_the_page_and_do_not_overlap(split: str) -> None:
    for page in pages(split):
        for item in page.items:
            assert -2 <= item.left < item.right <= page.width + 2, item
            assert -2 <= item.top < item.bottom <= page.height + 2, item
        for one, other in itertools.combinations(page.items, 2):
            apart = (
                one.right <= other.left or other.right <= one.left or one.bottom <= other.top + 1 or other.bottom <= one.top + 1
            )
            assert apart, (one, other)


def test_words_of_questions_are_tokens() -> None:
    tokenizer = build_tokenizer(page_words=True)
    for question in {question for page in pages("train") for question in page.questions}:
        asked = question.text.rstrip("?").replace(",", "").replace(" does", "").split()
        for word in (question.answer, *(part if part in DIGITS else f" {part}" for part in asked[1:])):
            assert len(tokenizer.encode(word).ids) == 1, word


def test_the_labels_of_a_page_are_where_its_items_are() -> None:
    for page in pages("train", 6):
        cells = label_cells([[(page, View(0, 0, page.columns, page.rows, page.rows, page.columns))]])
        seen = 0
        for number, item in enumerate(page.items):
            x, y = (
                (item.left + item.right) / 2 / page.width * page.columns,
                (item.top + item.bottom) / 2 / page.height * page.rows,
            )
            at = int(y) * page.columns + int(x)
            if cells["item"][0, at] != number:
                continue
            seen += 1
            assert cells["centre"][0, at] == 1
            assert TEXTS[cells["text"][0, at]] == item.text
            assert TEXTS[cells["row"][0, at]] == item.row
            assert TEXTS[cells["column"][0, at]] == item.column
            colour = cells["colour"][0, at]
            assert (list(COLOURS)[colour] if colour >= 0 else "") == item.colour
        assert seen > len(page.items) / 2  # neighbours may share a cell


def test_many_cells_repeat_a_neighbour() -> None:
    shares = [repeated_share(np.asarray(render_page(page))) for page in pages("heldout-large")]
    assert 0.3 < np.mean(shares) < 0.75
    pixels = np.zeros((2 * CELL, 2 * CELL, 3), np.uint8)
    pixels[CELL:, :CELL] = 9
    assert repeated_share(pixels) == 0.5  # the second cell, and the last one, which is as the one above


def test_a_split_is_written_as_a_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["--split", "validation", "--kind", "page", "--count", "2", "--questions", "2", "-o", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert "of the cells of a page" in result.output
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    page, asked = sample_page("validation", 0, 1, 2)
    assert [(row["question"], row["answer"]) for row in rows[2:]] == [(q.text, q.answer) for q in asked]
    assert np.array_equal(np.asarray(Image.open(tmp_path / rows[2]["image"])), np.asarray(render_page(page)))

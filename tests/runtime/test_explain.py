"""The picture of an answer: its panels, its colours, its size, and what it says where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.engines import BackendError, RequestError
from foveate.runtime import Answer, Pipeline, Request, Selection, Timings, explain
from foveate.runtime.encoding import Part
from foveate.runtime.explain import Panel, fit, heat_picture, heat_scale, kept_picture, sheet
from foveate.runtime.picture import Picture

COLOUR = (10, 200, 90)
GREY = (128, 128, 128)

scores = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40).map(lambda values: np.array(values, np.float32))


def answer(
    grids: Sequence[tuple[int, int]],
    keep: Sequence[int],
    scores: np.ndarray | None,
    selector: str = "attention",
    text: str = "red",
    colour: tuple[int, int, int] = COLOUR,
) -> Answer:
    """An answer about images of one colour."""
    total = sum(prod(grid) for grid in grids)
    selection = Selection(np.array(keep, np.int64), total, selector, "", scores)
    starts = accumulate(map(prod, grids), initial=0)
    pictures = tuple(
        Picture(Image.new("RGB", (28 * columns, 28 * rows), colour), (rows, columns), np.arange(rows * columns)).behind(start)
        for (rows, columns), start in zip(grids, starts, strict=False)
    )
    return Answer(text, (1,), "eos", selection, tuple((1, *grid) for grid in grids), 10, Timings(), 0, pictures)


def pixels_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(axis=2).sum())


def test_the_image_stands_whole_beside_its_kept_tokens() -> None:
    picture = answer([(2, 4)], [0, 1, 4, 5], np.arange(8, dtype=np.float32)).explain()
    width, height = fit(Image.new("RGB", (112, 56))).size
    assert (width, height) == (640, 320)
    assert pixels_of(picture, COLOUR) == width * height * 3 // 2
    assert picture.width > 3 * width


def test_what_the_panels_and_the_header_say(monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[tuple[list[list[str]], str, str]] = []

    def remember(rows: list[list[Panel]], title: str, note: str) -> Image.Image:
        sheets.append(([[panel.caption for panel in row] for row in rows], title, note))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(explain, "sheet", remember)
    answer([(1, 3), (2, 2)], [0, 3, 4, 6], np.ones(7, np.float32)).explain()
    answer([(2, 2)], [1], None, "random").explain()
    assert sheets == [
        (
            [["image 1", "scores", "kept 1 of 3 (33 %)"], ["image 2", "scores", "kept 3 of 4 (75 %)"]],
            "Answer: red",
            "selector attention, kept 4 of 7 visual tokens",
        ),
        ([["image", "kept 1 of 4 (25 %), random has no scores"]], "Answer: red", "selector random, kept 1 of 4 visual tokens"),
    ]


def test_images_of_one_request_share_the_scale() -> None:
    values = np.array([1, 1, 1, 0, 0.01, 0.01, 0.01, 0.01], np.float32)
    picture = np.asarray(answer([(2, 2), (2, 2)], [0], values, colour=GREY).explain(), int)
    reddest = picture[..., 0] - picture[..., 2]
    half = len(picture) // 2
    assert (reddest[:half] > 60).sum() > 10_000
    assert (reddest[half:] > 60).sum() < 2_000  # the legend's


def test_an_answer_of_the_pipeline_explains_itself(pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((140, 280, 3), (224, 112, 3))]
    for options in ({"keep": 0.25}, {"keep": 1.0, "explain": True}, {"keep": 0.5, "select": "random"}):
        asked = pipe.generate(Request.ask("What colour is the circle?", images, max_new_tokens=1, **options))
        assert [picture.image.size for picture in asked.pictures] == [(c * 28, r * 28) for _, r, c in asked.grids]
        assert np.concatenate([picture.tokens for picture in asked.pictures]).tolist() == list(
            range(asked.selection.num_visual_tokens)
        )
        assert asked.explain().width > 1000


def test_nothing_to_explain(pipe: Pipeline) -> None:
    image = np.zeros((112, 112, 3), np.uint8)
    with pytest.raises(RequestError, match="no image"):
        pipe.generate(Request.ask("What?", max_new_tokens=1)).explain()
    with pytest.raises(RequestError, match="neither scored nor pruned"):
        pipe.generate(Request.ask("What?", image, max_new_tokens=1)).explain()
    with pytest.raises(BackendError, match="not finite"):
        answer([(1, 2)], [0], np.array([0, np.nan], np.float32)).explain()


@given(scores)
def test_the_scale_keeps_the_order_and_uses_all_colours(values: np.ndarray) -> None:
    heat = heat_scale(values)
    order = np.argsort(values, kind="stable")
    assert (np.diff(heat[order]) >= 0).all()
    assert heat.min() == 0
    assert heat.max() == (values.max() > values.min())


def test_small_scores_stay_visible_beside_one_large() -> None:
    low, high = heat_scale(np.array([1e-6, 0.02, 0.8]))[[0, 1]]
    assert high - low > 0.1


def test_the_colours_are_those_of_inferno() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    values = np.linspace(0, 1, 101)
    published = matplotlib.colormaps["inferno"](values)[:, :3] * 255
    assert np.abs(explain._inferno(values) - published).max() < 17


def test_the_hottest_cell_is_the_brightest() -> None:
    heat = np.zeros(12)
    heat[6] = 1
    picture = heat_picture(Image.new("RGB", (400, 300), GREY), (3, 4), heat)
    row, column = np.unravel_index(np.asarray(picture.convert("L")).argmax(), (300, 400))
    assert (row // 100, column // 100) == (1, 2)
    assert picture.size == (400, 300)


def test_dropped_tokens_are_dim_and_kept_ones_untouched() -> None:
    image = Image.new("RGB", (90, 60), (200, 100, 50))
    kept = np.array([True, False, False, False, False, True])
    picture = np.asarray(kept_picture(image, (2, 3), kept))
    assert (picture[:30, :30] == (200, 100, 50)).all()
    assert (picture[30:, 60:] == (200, 100, 50)).all()
    assert (picture[:28, 32:] < 40).all()
    assert (picture[:28, 30:32] == (255, 190, 60)).all()
    assert not (picture[:28, 58:62] == (255, 190, 60)).all(axis=2).any()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 200))
def test_a_picture_fits_its_panel(width: int, height: int, rows: int) -> None:
    fitted = fit(Image.new("L", (width, height)), rows)
    assert fitted.mode == "RGB"
    assert fitted.width <= 640
    assert fitted.height <= 480
    assert fitted.width == 640 or fitted.height == 480 or rows > 1
    if min(fitted.size) > 50:
        assert fitted.width / fitted.height == pytest.approx(width / height, rel=0.02)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 24, 80])
def test_many_images_make_no_huge_picture(count: int) -> None:
    rng = np.random.default_rng(0)
    grids = [((2, 3), (3, 2), (1, 9), (3, 3))[number % 4] for number in range(count)]
    total = sum(prod(grid) for grid in grids)
    picture = answer(grids, range(total // 2), rng.random(total, np.float32)).explain()
    assert max(picture.size) < 3300
    assert min(picture.size) > 300


def test_text_never_widens_a_sheet() -> None:
    panel = Panel(Image.new("RGB", (640, 320)), "image")
    narrow = sheet([[panel]], "red", "note")
    assert sheet([[panel]], "red " * 500, "one\ntwo\tthree " * 100).size == narrow.size
    assert sheet([[Panel(panel.picture, "long " * 100)]], "", "note").size == narrow.size


def test_a_long_text_ends_in_an_ellipsis_where_the_room_ends() -> None:
    whole = "What colour is the circle on the left?"
    room = explain._length(whole, 16)
    assert explain._elided(whole, 16, room) == whole
    cut = explain._elided(whole, 16, room - 1)
    assert cut.endswith("…")
    assert whole.startswith(cut[:-1])
    assert explain._length(cut, 16) < room
    assert explain._length(whole[: len(cut)] + "…", 16) >= room


@pytest.mark.parametrize("again", [True, False])
def test_what_was_looked_at_computed_and_kept(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part; whether its tokens were scored again or not."""
    sheets: list[tuple[list[list[Panel]], str]] = []

    def remember(rows: list[list[Panel]], title: str, note: str) -> Image.Image:
        sheets.append((rows, note))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(explain, "sheet", remember)
    seen = np.array([0.1, 0.2, 0.9, 0.8, 0.1, 0.1, 0.7, 0.6], np.float32)
    small = Picture(Image.fromarray(np.array([[(255, 0, 0), (0, 0, 255)]], np.uint8)), (1, 2), np.arange(2))
    part = Part(np.array([2, 3, 6, 7]), seen, "attention", 8, 2, (small,))
    scores = np.array([0, 0, 0.1, 0.2, 0, 0, 0.3, 0.4], np.float32) if again else part.scores
    whole = answer([(2, 4)], [6, 7] if again else [2, 3, 6, 7], scores)
    replace(whole, part=part).explain()
    ((rows, note),) = sheets
    expected = [["image", "glance: 2 tokens"], ["scores of the glance", "encoded and kept 4 of 8 (50 %)"]]
    if again:
        expected = [
            ["image", "glance: 2 tokens", "scores of the glance"],
            ["encoded 4 of 8 (50 %)", "scores of these", "kept 2 of 8 (25 %)"],
        ]
    assert [[panel.caption for panel in row] for row in rows] == expected
    assert note.startswith("selector attention, the tower saw 4 after a glance at 2, kept ")
    # As coarse as the tower saw it: two pixels.
    glance = np.asarray(rows[0][1].picture)
    assert glance.shape[:2] == (320, 640)
    assert (glance[:, :320] == (255, 0, 0)).all()
    assert (glance[:, 320:] == (0, 0, 255)).all()
    computed, kept = np.asarray(rows[1][0 if again else 1].picture), np.asarray(rows[1][-1].picture)
    bright = [[(picture[row : row + 150, column : column + 300] == COLOUR).all(axis=2).mean() > 0.95 for row in (5, 165)
               for column in (5, 335)] for picture in (computed, kept)]  # fmt: skip
    assert bright == [[False, True, False, True], [False, False, False, True] if again else [False, True, False, True]]
    never, dropped = kept[80, 100].sum(), kept[80, 500].sum()
    assert never < dropped < sum(COLOUR) if again else never < dropped == sum(COLOUR)


def test_an_answer_with_a_part_has_its_small_pictures(pipe: Pipeline) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pictures = [Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC) for size in ((560, 560), (560, 448))]
    asked = pipe.generate(Request.ask("What?", pictures, encode=0.25, keep=0.1, max_new_tokens=1))
    assert asked.part is not None
    assert [picture.image.size for picture in asked.part.pictures] == [(280, 280), (280, 224)]
    assert [len(picture.tokens) for picture in asked.part.pictures] == [100, 80]
    assert set(asked.selection.keep_indices) <= set(asked.part.tokens)
    assert asked.explain().width > 1000
    assert pipe.generate(Request.ask("What?", pictures, keep=0.1, max_new_tokens=1)).part is None


def test_other_small_pictures_than_large_ones_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one image would stand beside another."""
    rows: list[list[Panel]] = []
    monkeypatch.setattr(explain, "sheet", lambda given, title, note: rows.extend(given) or Image.new("RGB", (1, 1)))
    part = Part(np.array([0, 1]), np.ones(4, np.float32), "attention", 4, 1, ())
    replace(answer([(2, 2)], [0, 1], part.scores), part=part).explain()
    assert [[panel.caption for panel in row] for row in rows] == [
        ["image", "scores of the glance"],
        ["encoded and kept 2 of 4 (50 %)"],
    ]

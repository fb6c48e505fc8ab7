"""Pictures of what was decided: the scores of the visual tokens as a heat map, and the tokens that stayed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from foveate.engines import BackendError, RequestError
from foveate.runtime.encoding.outcome import Part
from foveate.runtime.picture import Picture
from foveate.runtime.select import Selection

# fmt: off
_INFERNO = (
    (0, 0, 4), (32, 12, 74), (86, 16, 110), (138, 34, 106), (188, 55, 84), (228, 90, 49), (249, 142, 9), (249, 203, 53),
    (252, 255, 164),
)
"""Nine evenly spaced colours of `inferno`, matplotlib's perceptually uniform colour map, which is nearly linear in between."""
# fmt: on
_POWER = 0.5
"""Exponent of the scores in a heat map. The scores of a softmax span orders of magnitude: on a linear scale all but a few
tokens would look alike, while ranks would spread the noise of the background over most of the colours."""
_SHADE = 0.55
"""How much the dark parts of the image darken the colours over them, 0 to 1."""
_GLIMMER = 90
"""How bright the light parts of the image shine through the black of low scores, 0 to 255."""
_DIMMED = 0.22
"""Brightness of a dropped token."""
_COMPUTED = 0.55
"""Brightness of a token that was computed and then dropped."""
_INK, _FADED, _OUTLINE = (20, 20, 20), (110, 110, 110), (255, 190, 60)
_PANEL = (640, 480)
"""Largest width and height of a panel in pixels; a small image is scaled up to it."""
_SHEET = 2400
"""What the sides of a sheet should stay near, in pixels: many images get smaller panels."""
_SMALLEST_PANEL = 96
"""What a panel may at least take up, in pixels, however many there are."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a sheet.

    Attributes:
        picture: RGB, in its final size.
        caption: the line below it.
        legend: the caption is followed by the colours of the heat map.
    """

    picture: Image.Image
    caption: str
    legend: bool = False


def draw(text: str, selection: Selection, pictures: Sequence[Picture], part: Part | None = None) -> Image.Image:
    """One row of panels for each image and frame: as the model saw it, its scores as a heat map over it, and the kept tokens.
    Of a part there are two rows: the image, the small picture that was looked at first, and its scores; then the tokens that
    were computed, and where these were scored again their scores and the kept ones.

    The scores of all of them share one colour scale, those of the glance another. Where the selector ranks no tokens, there is
    no heat map and the caption says so.

    Args:
        text: the answer.
        selection: which visual tokens stayed.
        pictures: the images and frames that all of these tokens tile.
        part: the visual tokens that the tower computed; None where it computed all.

    Raises:
        RequestError: the request has no image or video, or its visual tokens were neither scored nor pruned.
        BackendError: the scores are not finite.
    """
    _check(selection)
    kept = np.isin(np.arange(selection.num_visual_tokens), selection.keep_indices)
    heat = None if selection.scores is None else heat_scale(selection.scores)
    rows: list[list[Panel]] = []
    computed = None if part is None else np.isin(np.arange(part.total), part.tokens)
    glance = None if part is None or part.scores is None else _Glance(part, pictures, again=selection.scores is not part.scores)
    for number, picture in enumerate(pictures):
        cells = picture.tokens
        fitted = fit(picture.image, len(pictures) * (1 if glance is None else 2))
        panels = [Panel(fitted, _name(picture, number + 1, len(pictures)))]
        if glance is not None:
            panels += glance.panels(number, fitted)
        if glance is None or glance.again:
            shares = None if heat is None else heat[cells]
            seen = None if computed is None else computed[cells]
            panels += _decided(fitted, picture.grid, kept[cells], shares, selection.selector, seen)
        # Of four and of six panels half a row each.
        across = len(panels) if glance is None else math.ceil(len(panels) / 2)
        rows += [panels[start : start + across] for start in range(0, len(panels), across)]
    return sheet(rows, f"Answer: {text}", _facts(selection, part))


class _Glance:
    """What a glance adds to the panels of pictures.

    Attributes:
        computed: bool `[visual_tokens]`: whether the tower computed it.
        again: whether the computed tokens were scored again.
    """

    def __init__(self, part: Part, pictures: Sequence[Picture], again: bool) -> None:
        self.again = again
        self.computed = np.isin(np.arange(part.total), part.tokens)
        self._pictures = pictures
        # A family may look at other pictures than it computes.
        self._small = part.pictures if len(part.pictures) == len(pictures) else ()
        assert part.scores is not None  # those of the glance
        self._heat = heat_scale(part.scores)

    def panels(self, number: int, fitted: Image.Image) -> Iterator[Panel]:
        """Those of a picture."""
        grid, cells = self._pictures[number].grid, self._pictures[number].tokens
        if self._small:
            small = self._small[number]
            # Pixel for pixel: it is as coarse as the tower saw it.
            coarse = small.image.convert("RGB").resize(fitted.size, Image.Resampling.NEAREST)
            yield Panel(coarse, f"glance: {len(small.tokens)} tokens")
        yield Panel(heat_picture(fitted, grid, self._heat[cells]), "scores of the glance", legend=True)
        computed = self.computed[cells]
        caption = _counted("encoded" if self.again else "encoded and kept", computed)
        yield Panel(kept_picture(fitted, grid, computed), caption)


def fit(picture: Image.Image, rows: int = 1) -> Image.Image:
    """The picture in RGB, as large as it stands on a sheet with so many rows of three panels; its sides keep their ratio."""
    abreast = _abreast(rows)
    room = (_SHEET // (3 * abreast), _SHEET // math.ceil(rows / abreast))
    width, height = (min(most, max(_SMALLEST_PANEL, side)) for most, side in zip(_PANEL, room, strict=True))
    factor = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def heat_scale(scores: np.ndarray) -> np.ndarray:
    """Scores on the scale of a heat map: 0 for the lowest, 1 for the highest, a power of the distance between them.

    Args:
        scores: `[num_visual_tokens]`, finite; where all are equal, all get 0.

    Returns:
        `[num_visual_tokens]` float64.
    """
    distance = scores.astype(np.float64) - scores.min()
    return np.asarray((distance / (distance.max() or 1.0)) ** _POWER)


def heat_picture(picture: Image.Image, grid: tuple[int, int], heat: np.ndarray) -> Image.Image:
    """The picture in grey under a heat map.

    Args:
        picture: RGB.
        grid: rows and columns of visual tokens over the picture.
        heat: `[rows * columns]`, 0 to 1.
    """
    cells = Image.fromarray(heat.reshape(grid).astype(np.float32))
    smooth = np.asarray(cells.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] / 255
    colours = _inferno(smooth[..., 0]) * (1 - _SHADE + _SHADE * grey) + _GLIMMER * grey * (1 - smooth)
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def kept_picture(
    picture: Image.Image, grid: tuple[int, int], kept: np.ndarray, computed: np.ndarray | None = None
) -> Image.Image:
    """The picture with its dropped visual tokens grey and dim, and a line around those that stayed.

    Args:
        picture: RGB.
        grid: rows and columns of visual tokens over the picture.
        kept: bool `[rows * columns]`, true = kept.
        computed: the same of those that were computed, which are less dim; None where all were.
    """
    mask = _mask(kept, grid, picture.size)
    dropped = _dimmed(picture, _DIMMED)
    if computed is not None:
        dropped = Image.composite(_dimmed(picture, _COMPUTED), dropped, _mask(computed, grid, picture.size))
    decided = Image.composite(picture, dropped, mask)
    wider = mask.filter(ImageFilter.MaxFilter(5))
    decided.paste(_OUTLINE, mask=Image.fromarray(np.asarray(wider) - np.asarray(mask)))
    return decided


def _mask(tokens: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(tokens.reshape(grid).astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)


def _dimmed(picture: Image.Image, brightness: float) -> Image.Image:
    return picture.convert("L").point(lambda value: round(value * brightness)).convert("RGB")


def sheet(rows: Sequence[Sequence[Panel]], title: str, note: str = "") -> Image.Image:
    """Rows of panels on white, with the title and a fainter note above; many rows stand several abreast.

    Text that is too wide ends in an ellipsis.
    """
    panels = list(chain(*rows))
    size = max(11, min(18, max(panel.picture.height for panel in panels) // 24))
    column = min(_PANEL[0], max(_width(panel, size) for panel in panels))
    strips = [_strip(row, column, size) for row in rows]
    abreast = _abreast(len(rows))
    lines = [_joined(strips[start : start + abreast], gap=3 * size, across=True) for start in range(0, len(rows), abreast)]
    body = _joined(lines, gap=size)
    return ImageOps.expand(_joined([_heading(title, note, body.width, size), body], gap=size), size, "white")


def _check(selection: Selection) -> None:
    if not selection.num_visual_tokens:
        raise RequestError("the request has no image or video, so there is nothing to explain. Ask about one.")
    if selection.scores is None and len(selection.keep_indices) == selection.num_visual_tokens:
        raise RequestError(
            "the visual tokens were neither scored nor pruned, so there is nothing to explain. "
            "Keep fewer, or set explain=True with a selector that scores."
        )
    if selection.scores is not None and not np.isfinite(selection.scores).all():
        raise BackendError("the scores are not finite, so there is nothing to explain. Export the bundle again.")


def _name(picture: Picture, number: int, pictures: int) -> str:
    name = "image" if picture.seconds is None else "frame"
    numbered = f"{name} {number}" if pictures > 1 else name
    return numbered if picture.seconds is None else f"{numbered}, {picture.seconds:.1f} s"


def _decided(
    picture: Image.Image,
    grid: tuple[int, int],
    kept: np.ndarray,
    heat: np.ndarray | None,
    selector: str,
    computed: np.ndarray | None,
) -> Iterator[Panel]:
    """The panels of an image beside itself."""
    caption = _counted("kept", kept)
    if heat is None:
        caption += f", {selector} has no scores"
    else:
        yield Panel(heat_picture(picture, grid, heat), "scores" if computed is None else "scores of these", legend=True)
    yield Panel(kept_picture(picture, grid, kept, computed), caption)


def _counted(what: str, tokens: np.ndarray) -> str:
    return f"{what} {tokens.sum()} of {len(tokens)} ({100 * tokens.mean():.0f} %)"


def _facts(selection: Selection, part: Part | None) -> str:
    kept = f"kept {len(selection.keep_indices)} of {selection.num_visual_tokens} visual tokens"
    facts = [f"selector {selection.selector}", *([] if part is None else [part.encoding().told()]), kept]
    return ", ".join(facts) + (f": {selection.reason}" if selection.reason else "")


def _inferno(values: np.ndarray) -> np.ndarray:
    """The colours of values from 0 to 1: `[...]` to `[..., 3]` float64, 0 to 255."""
    stops = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(values, stops, channel) for channel in zip(*_INFERNO, strict=True)], axis=-1)


def _abreast(rows: int) -> int:
    """How many rows of three panels stand side by side, so that the sheet is about as wide as high."""
    return math.ceil(math.sqrt(rows / 3))


def _heading(title: str, note: str, width: int, size: int) -> Image.Image:
    """The title in one line, the note in the next."""
    paper = Image.new("RGB", (width, round(3.3 * size) if note else 2 * size), "white")
    pen = ImageDraw.Draw(paper)
    large = round(1.5 * size)
    pen.text((0, 0), _elided(title, large, width), fill=_INK, font=_font(large))
    pen.text((0, 2 * size), _elided(note, size, width), fill=_FADED, font=_font(size))
    return paper


def _strip(row: Sequence[Panel], column: int, size: int) -> Image.Image:
    """Panels in columns of one width, a caption below each."""
    height = max(panel.picture.height for panel in row)
    paper = Image.new("RGB", (len(row) * (column + size) - size, height + 2 * size), "white")
    pen = ImageDraw.Draw(paper)
    for number, panel in enumerate(row):
        left, below = number * (column + size), panel.picture.height + size // 2
        paper.paste(panel.picture, (left, 0))
        pen.text((left, below), _elided(panel.caption, size, column), fill=_INK, font=_font(size))
        if panel.legend:
            legend = _legend(size)
            paper.paste(legend, (left + _width(panel, size) - legend.width, below))
    return paper


def _width(panel: Panel, size: int) -> int:
    """How wide a panel and its caption are."""
    legend = size + _legend(size).width if panel.legend else 0
    return max(panel.picture.width, _length(panel.caption, size) + legend)


def _legend(size: int) -> Image.Image:
    """The colours of the heat map in a slim bar between `low` and `high`."""
    low, high, bar, space = _length("low", size), _length("high", size), 6 * size, size // 3
    legend = Image.new("RGB", (low + space + bar + space + high, round(1.4 * size)), "white")
    pen = ImageDraw.Draw(legend)
    pen.text((0, 0), "low", fill=_FADED, font=_font(size))
    pen.text((legend.width - high, 0), "high", fill=_FADED, font=_font(size))
    colours = _inferno(np.tile(np.linspace(0, 1, bar), (size // 2, 1))).astype(np.uint8)
    legend.paste(Image.fromarray(colours), (low + space, size // 3))
    return legend


def _joined(parts: Sequence[Image.Image], gap: int, across: bool = False) -> Image.Image:
    """Pictures on white, one below the other or side by side."""
    sizes = np.array([part.size for part in parts])
    steps = (sizes + gap) * (across, not across)
    width, height = np.maximum(sizes.max(axis=0), steps.sum(axis=0) - gap).tolist()
    paper = Image.new("RGB", (width, height), "white")
    for part, (left, top) in zip(parts, (steps.cumsum(axis=0) - steps).tolist(), strict=True):
        paper.paste(part, (left, top))
    return paper


def _elided(text: str, size: int, width: int) -> str:
    """The text in one line, as much of it as fits."""
    text = " ".join(text.split())
    if _length(text, size) <= width:
        return text
    end = bisect_right(range(1, len(text)), width, key=lambda end: _length(f"{text[:end]}…", size))
    return f"{text[:end]}…"


def _length(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

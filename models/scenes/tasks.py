"""What a checkpoint is asked: about an image, about several, or about a clip, each task a function of its generator alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from models.documents.page import (
    NAMED_TYPES,
    PAGE_TYPES,
    Page,
    choose_questions,
    draw_page,
    draw_sheet,
    sample_page,
    sample_pixels,
)
from models.documents.render import render_page
from models.scenes.clips import CLIP_TYPES, ask_clip, sample_clip
from models.scenes.dataset import rng_of
from models.scenes.render import render
from models.scenes.world import OBJECT_SIZES, QUESTION_TYPES, SMALL_OBJECT, Question, Scene, ask, place_objects, refer

Kind = Literal["image", "images", "video", "page", "sheet"]
KINDS: tuple[Kind, ...] = ("image", "images", "video")
"""What every checkpoint is asked about."""
TYPES = tuple(dict.fromkeys((*QUESTION_TYPES, "which", *CLIP_TYPES, *PAGE_TYPES)))
"""Every type of question."""
_SEVERAL_TYPES = ("colour", "shape", "digit")
_PAGE_SIZES = (15, 28)
"""Of the asked texts of a page that is drawn for training, in pixels."""


@dataclass(frozen=True)
class Size:
    """Rows and columns of cells and the pixels they are drawn at: what the images of one training batch share.

    The model sees them `shrink` times smaller.
    """

    rows: int
    columns: int
    width: int
    height: int
    shrink: int = 1


@dataclass(frozen=True)
class World:
    """What the images and clips of a checkpoint look like.

    Attributes:
        grids: rows and columns of cells of an image that is alone; listed twice, a grid comes twice as often.
        cell_pixels: side of a cell of an image.
        jitter: by how many pixels an image's sides may differ from whole cells; half of the images do.
        several: rows and columns of each of several images.
        clip: rows and columns of a clip.
        clip_pixels: side of a cell of a clip.
        frames: the fewest and the most frames of a clip.
        types: types of question about an image.
        texts: kinds of text on objects.
        shares: of images, several images and clips in training.
        sizes: the smallest and largest object of an image, in cells; each scene draws one of these.
        shrinks: how many times smaller than drawn an image or page of up to 100 tokens is seen.
        pages: rows and columns of cells of a document.
    """

    grids: tuple[tuple[int, int], ...]
    cell_pixels: int
    jitter: int
    several: tuple[int, int]
    clip: tuple[int, int]
    clip_pixels: int
    frames: tuple[int, int]
    types: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    shares: tuple[float, float, float]
    sizes: tuple[tuple[float, float], ...] = (OBJECT_SIZES,)
    shrinks: tuple[int, ...] = (1,)
    pages: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Task:
    """Images, the frames of a clip, or a page, with questions that need them; a sheet has none."""

    kind: Kind
    scenes: tuple[Scene | Page, ...]
    """The images, the clip's frames, or the page."""
    questions: list[Question]
    shrink: int = 1
    """How many times smaller than drawn they are seen."""

    def pictures(self) -> list[Image.Image]:
        """RGB, one for each of `scenes`."""
        drawn = [render_page(scene) if isinstance(scene, Page) else render(scene) for scene in self.scenes]
        return [image.reduce(self.shrink) for image in drawn] if self.shrink > 1 else drawn


def sample_task(world: World, split: str, seed: int, index: int, kind: Kind, questions: int) -> Task:
    """Task number `index` of a kind; no two splits, seeds, kinds or indices share a generator. Pages are any world's."""
    if kind == "page":
        page, asked = sample_page(split, seed, index, questions)
        return Task(kind, (page,), asked)
    rng = rng_of(split, seed, index, 1 + KINDS.index(kind))
    return draw_task(rng, world, kind, *sample_shape(rng, world, kind), questions)


def sample_shape(rng: np.random.Generator, world: World, kind: Kind) -> tuple[Size, int]:
    """Size of a task's images and how many images or frames it has."""
    if kind == "video":
        rows, columns = world.clip
        return Size(rows, columns, columns * world.clip_pixels, rows * world.clip_pixels), int(
            rng.integers(world.frames[0], world.frames[1] + 1)
        )
    if kind in ("page", "sheet"):
        rows, columns = world.pages[int(rng.integers(len(world.pages)))]
        if kind == "sheet":
            return Size(rows, columns, columns * world.cell_pixels, rows * world.cell_pixels), 1
        return _shrunk(rng, world, rows, columns, 2) or Size(rows, columns, *sample_pixels(rng, rows, columns)), 1
    rows, columns = world.grids[int(rng.integers(len(world.grids)))] if kind == "image" else world.several
    if kind == "image" and (size := _shrunk(rng, world, rows, columns)):
        return size, 1
    width, height = columns * world.cell_pixels, rows * world.cell_pixels
    if world.jitter and rng.random() < 0.5:
        width += int(rng.integers(-world.jitter, world.jitter + 1))
        height += int(rng.integers(-world.jitter, world.jitter + 1))
    return Size(rows, columns, width, height), 1 if kind == "image" else int(rng.integers(2, 4))


def _shrunk(rng: np.random.Generator, world: World, rows: int, columns: int, most: int = 3) -> Size | None:
    """Whole cells that are seen up to `most` times smaller, as often as the world says and the grid is small enough."""
    shrink = world.shrinks[int(rng.integers(len(world.shrinks)))]
    if shrink == 1 or shrink > most or rows * columns > 100:
        return None
    rows, columns = rows * shrink, columns * shrink
    return Size(rows, columns, columns * world.cell_pixels, rows * world.cell_pixels, shrink)


def draw_task(rng: np.random.Generator, world: World, kind: Kind, size: Size, count: int, questions: int) -> Task:
    """A task of a given shape with up to `questions` questions."""
    if kind == "video":
        clip = sample_clip(rng, size.rows, size.columns, count, world.clip_pixels)
        scenes = tuple(clip.frame(number) for number in range(count))
        return Task(kind, scenes, ask_clip(rng, clip, questions))
    if kind == "sheet":
        return Task(kind, (draw_sheet(rng, size.rows, size.columns, _PAGE_SIZES),), [])
    if kind == "page":
        sizes = tuple(round(pixels * (1 + 0.6 * (size.shrink - 1))) for pixels in _PAGE_SIZES)
        page = draw_page(rng, "train", size.rows, size.columns, size.width, size.height, (sizes[0], sizes[1]))
        # A value by its name is the last that is learned: half of the pages ask for nothing else, if they have any.
        asked = choose_questions(rng, page, questions, NAMED_TYPES) if rng.random() < 0.5 else []
        return Task(kind, (page,), asked or choose_questions(rng, page, questions), size.shrink)
    most = min(6, max(2, size.rows * size.columns // 10))
    scenes = tuple(_scene(rng, world, size, int(rng.integers(min(3, most), most + 1))) for _ in range(count))
    asked = ask(rng, scenes[0], questions, world.types) if kind == "image" else _ask_several(rng, scenes, questions)
    return Task(kind, scenes, asked, size.shrink)


def _scene(rng: np.random.Generator, world: World, size: Size, objects: int) -> Scene:
    sizes = world.sizes[int(rng.integers(len(world.sizes)))]
    placed = place_objects(rng, size.rows, size.columns, objects, world.texts, sizes, SMALL_OBJECT * size.shrink)
    return Scene(size.rows, size.columns, size.width, size.height, placed, int(rng.integers(2**31)))


def _ask_several(rng: np.random.Generator, scenes: Sequence[Scene], count: int) -> list[Question]:
    """About objects that only one of the images has, and which image has them."""
    everything = replace(scenes[0], objects=tuple(item for scene in scenes for item in scene.objects))
    found = ask(rng, everything, count, _SEVERAL_TYPES)
    found += [question for number, scene in enumerate(scenes) for question in _ask_which(rng, everything, scene, number)]
    return [found[index] for index in rng.permutation(len(found))[:count]]


def _ask_which(rng: np.random.Generator, everything: Scene, scene: Scene, number: int) -> Iterator[Question]:
    for item in scene.objects[:1]:
        if phrase := refer(rng, everything, item):
            yield Question("which", f"What image is {phrase} on?", str(number + 1))

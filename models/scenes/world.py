"""What a scene is: objects on a grid, and the questions that can be asked about them.

Pure data and numpy; `render.py` draws a scene, `dataset.py` strings scenes into splits. Everything is a
function of the generator it is given, so a seed fixes a scene and its questions for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (35, 80, 200),
    "yellow": (245, 215, 40),
    "purple": (125, 50, 160),
    "orange": (255, 130, 20),
    "pink": (250, 140, 190),
    "cyan": (40, 205, 220),
}
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCEFHKMRSTX")
WORDS = ("cat", "dog", "sun", "car", "box", "map", "key", "bus", "cup", "hat", "pen", "egg")
TEXTS = ("", *DIGITS, *LETTERS, *WORDS)
"""What may be on an object."""
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
QUESTION_TYPES = ("colour", "shape", "word", "digit", "letter", "position", "count", "relation")

MIN_TOKENS, MAX_TOKENS = 64, 256
"""Visual tokens of a training image; an image is `rows x columns` cells and a cell is one visual token."""
OBJECT_SIZES = (1.85, 2.3)
"""The smallest and the largest object of a scene, in cells."""
SMALL_OBJECT = 1.0
"""On an object this small, in cells, no word is legible."""
POSITION_MARGIN = 0.08
"""An object this close (in image widths or heights) to a centre line is not asked "where"."""
RELATION_MARGIN_CELLS = 1.0
"""Two objects nearer than this along an axis are not compared along it."""


@dataclass(frozen=True)
class SceneObject:
    """One object. `x`, `y` is its centre and `size` its width, all in cells."""

    shape: str
    colour: str
    text: str
    """The digit, letter or word on it; empty for none."""
    x: float
    y: float
    size: float

    @property
    def text_kind(self) -> str:
        """`digit`, `letter`, `word`, or empty for an object without text."""
        if not self.text:
            return ""
        if self.text in DIGITS:
            return "digit"
        return "letter" if self.text in LETTERS else "word"


@dataclass(frozen=True)
class Scene:
    """Objects on a grid of `rows x columns` cells, and the pixels (`width x height`) to draw it at."""

    rows: int
    columns: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    texture_seed: int

    @property
    def num_visual_tokens(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Question:
    """A question with its one right answer; `type` is one of `QUESTION_TYPES`."""

    type: str
    text: str
    answer: str
    needs: tuple[int, ...] = ()
    """Which objects, or items of a page, the answer needs; empty where nobody said."""


def sample_grid(rng: np.random.Generator, min_tokens: int = MIN_TOKENS, max_tokens: int = MAX_TOKENS) -> tuple[int, int]:
    """A grid of rows x columns with a token count spread evenly (in log) over the range and an aspect up to 2:1."""
    while True:
        tokens = np.exp(rng.uniform(np.log(min_tokens), np.log(max_tokens)))
        aspect = np.exp(rng.uniform(-0.7, 0.7))
        rows, columns = round(float(np.sqrt(tokens / aspect))), round(float(np.sqrt(tokens * aspect)))
        if min_tokens <= rows * columns <= max_tokens and min(rows, columns) >= 6:
            return rows, columns


def sample_scene(
    rng: np.random.Generator, grid: tuple[int, int] | None = None, exact_size_share: float = 0.5, cell_pixels: int = 28
) -> Scene:
    """A random scene; `exact_size_share` of them have sides that are whole cells, the others are resized on the way in."""
    rows, columns = grid or sample_grid(rng)
    width, height = columns * cell_pixels, rows * cell_pixels
    if rng.random() >= exact_size_share:
        width += int(rng.integers(-cell_pixels // 2 + 1, cell_pixels // 2))
        height += int(rng.integers(-cell_pixels // 2 + 1, cell_pixels // 2))
    objects = place_objects(rng, rows, columns, int(rng.integers(3, 7)))
    return Scene(rows, columns, width, height, objects, int(rng.integers(2**31)))


def place_objects(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    count: int,
    texts: Sequence[Sequence[str]] = (DIGITS, LETTERS, WORDS),
    sizes: tuple[float, float] = OBJECT_SIZES,
    legible: float = SMALL_OBJECT,
) -> tuple[SceneObject, ...]:
    """Up to `count` objects that do not touch, as many as find room; three of four have a text of one of the kinds `texts`.

    Args:
        sizes: the smallest and the largest, in cells.
        legible: on an object no larger than this, in cells, there is no word.
    """
    # Half of the scenes draw from few shapes or colours, so that counts above one are common.
    shapes = rng.choice(SHAPES, size=int(rng.integers(1, 3)), replace=False) if rng.random() < 0.35 else SHAPES
    colours = rng.choice(list(COLOURS), size=int(rng.integers(1, 3)), replace=False) if rng.random() < 0.35 else list(COLOURS)
    placed: list[SceneObject] = []
    for _ in range(60):
        size = float(rng.uniform(*sizes))
        x, y = (float(rng.uniform(size / 2, side - size / 2)) for side in (columns, rows))
        if any(max(abs(o.x - x), abs(o.y - y)) < (o.size + size) / 2 + 0.15 for o in placed):
            continue
        own = texts if size > legible else [kind for kind in texts if kind is not WORDS]
        placed.append(SceneObject(str(rng.choice(shapes)), str(rng.choice(colours)), _sample_text(rng, own), x, y, size))
        if len(placed) == count:
            break
    return tuple(placed)


def _sample_text(rng: np.random.Generator, texts: Sequence[Sequence[str]]) -> str:
    kind = rng.integers(4)
    return "" if kind == 0 else str(rng.choice(texts[(kind - 1) % len(texts)]))


def ask(rng: np.random.Generator, scene: Scene, count: int, kinds: Sequence[str] = QUESTION_TYPES) -> list[Question]:
    """`count` questions about a scene, spread over those of the types `kinds` that it allows."""
    kinds = list(kinds)
    made: dict[str, Question] = {}
    for attempt in range(count * 12):
        # Every type once, then at random; no type may take more than a third of the questions.
        kind = kinds[attempt] if attempt < len(kinds) else str(rng.choice(kinds))
        question = _QUESTIONS[kind](rng, scene)
        if question is not None and sum(q.type == kind for q in made.values()) < max(2, count // 3):
            made.setdefault(question[0], Question(kind, *question))
    order = rng.permutation(len(made))[:count]
    return [list(made.values())[i] for i in order]


def refer(rng: np.random.Generator, scene: Scene, target: SceneObject, hide: str = "") -> str | None:
    """A phrase that fits only `target`, without naming the attribute `hide` (`shape`, `colour` or `text`)."""
    same_shape = [o for o in scene.objects if o.shape == target.shape]
    phrases = []
    if hide != "shape" and len(same_shape) == 1:
        phrases.append(f"the {target.shape}")
    if hide != "colour" and sum(o.colour == target.colour for o in scene.objects) == 1:
        phrases.append(f"the {target.colour} object")
    if hide not in ("shape", "colour") and sum(o.colour == target.colour for o in same_shape) == 1:
        phrases.append(f"the {target.colour} {target.shape}")
    if hide != "text" and target.text and sum(o.text == target.text for o in scene.objects) == 1:
        phrases.append(f"the object with {target.text}")
    return str(rng.choice(phrases)) if phrases else None


def _pick(rng: np.random.Generator, candidates: list[SceneObject]) -> SceneObject | None:
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


_Asked = tuple[str, str, tuple[int, ...]]
"""A question, its answer, and which objects it needs."""


def _find(scene: Scene, *objects: SceneObject) -> tuple[int, ...]:
    return tuple(scene.objects.index(item) for item in objects)


def _ask_colour(rng: np.random.Generator, scene: Scene) -> _Asked | None:
    target = _pick(rng, list(scene.objects))
    phrase = target and refer(rng, scene, target, hide="colour")
    return (f"What colour is {phrase}?", target.colour, _find(scene, target)) if target and phrase else None


def _ask_shape(rng: np.random.Generator, scene: Scene) -> _Asked | None:
    target = _pick(rng, list(scene.objects))
    phrase = target and refer(rng, scene, target, hide="shape")
    return (f"What shape is {phrase}?", target.shape, _find(scene, target)) if target and phrase else None


_Maker = Callable[[np.random.Generator, Scene], _Asked | None]
"""Makes a question of one type, or None where the scene does not allow it."""


def _ask_text(kind: str) -> _Maker:
    def maker(rng: np.random.Generator, scene: Scene) -> _Asked | None:
        target = _pick(rng, [o for o in scene.objects if o.text_kind == kind])
        phrase = target and refer(rng, scene, target, hide="text")
        return (f"What {kind} is on {phrase}?", target.text, _find(scene, target)) if target and phrase else None

    return maker


def _ask_position(rng: np.random.Generator, scene: Scene) -> _Asked | None:
    clear = [
        o
        for o in scene.objects
        if abs(o.x / scene.columns - 0.5) > POSITION_MARGIN and abs(o.y / scene.rows - 0.5) > POSITION_MARGIN
    ]
    target = _pick(rng, clear)
    phrase = target and refer(rng, scene, target)
    if not target or not phrase:
        return None
    vertical = "top" if target.y < scene.rows / 2 else "bottom"
    sideways = "left" if target.x < scene.columns / 2 else "right"
    return f"Where is {phrase}?", f"{vertical} {sideways}", _find(scene, target)


def _ask_count(rng: np.random.Generator, scene: Scene) -> _Asked | None:
    # Mostly of something that is there; otherwise zero would be the usual answer.
    present = rng.random() < 0.85
    if rng.random() < 0.5:
        shape = str(rng.choice([o.shape for o in scene.objects] if present else SHAPES))
        counted = [o for o in scene.objects if o.shape == shape]
        return f"How many {PLURALS[shape]} are there?", str(len(counted)), _find(scene, *counted)
    colour = str(rng.choice([o.colour for o in scene.objects] if present else list(COLOURS)))
    counted = [o for o in scene.objects if o.colour == colour]
    return f"How many {colour} objects are there?", str(len(counted)), _find(scene, *counted)


def _ask_relation(rng: np.random.Generator, scene: Scene) -> _Asked | None:
    if len(scene.objects) < 2:
        return None
    one, other = (scene.objects[i] for i in rng.choice(len(scene.objects), size=2, replace=False))
    phrases = refer(rng, scene, one), refer(rng, scene, other)
    sideways = bool(rng.random() < 0.5)
    distance = one.x - other.x if sideways else one.y - other.y
    if None in phrases or abs(distance) < RELATION_MARGIN_CELLS:
        return None
    relation = str(rng.choice(("left of", "right of") if sideways else ("above", "below")))
    answer = (distance < 0) == (relation in ("left of", "above"))
    return f"Is {phrases[0]} {relation} {phrases[1]}?", "yes" if answer else "no", _find(scene, one, other)


_QUESTIONS: dict[str, _Maker] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "word": _ask_text("word"),
    "digit": _ask_text("digit"),
    "letter": _ask_text("letter"),
    "position": _ask_position,
    "count": _ask_count,
    "relation": _ask_relation,
}

"""Short clips of scenes: objects that stand, move, appear and vanish, and questions that a single frame does not answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from models.scenes.render import render
from models.scenes.world import COLOURS, SHAPES, Question, Scene, SceneObject

CLIP_TYPES = ("moves", "direction", "appears", "vanishes", "colour")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_SIZE = 2.0


@dataclass(frozen=True)
class Actor:
    """An object and what it does: it is there from frame `first` to frame `last` and moves on by `dx`, `dy` cells a frame."""

    item: SceneObject
    first: int
    last: int
    dx: float = 0.0
    dy: float = 0.0

    @property
    def direction(self) -> str:
        """`left`, `right`, `up`, `down`, or empty where it stands still."""
        return next((name for name, (dx, dy) in DIRECTIONS.items() if (np.sign(self.dx), np.sign(self.dy)) == (dx, dy)), "")


@dataclass(frozen=True)
class Clip:
    """Frames of one size over one background."""

    scene: Scene
    frames: int
    actors: tuple[Actor, ...]

    def frame(self, number: int) -> Scene:
        """The scene at a frame; its background and shades are those of every other."""
        # What comes or goes is drawn last: the shades of the others, drawn before it, do not change with it.
        seen = sorted((a for a in self.actors if a.first <= number <= a.last), key=self.changes)
        objects = tuple(replace(a.item, x=a.item.x + a.dx * number, y=a.item.y + a.dy * number) for a in seen)
        return replace(self.scene, objects=objects)

    def changes(self, actor: Actor) -> bool:
        """Whether an object comes or goes."""
        return (actor.first, actor.last) != (0, self.frames - 1)

    def render(self) -> list[Image.Image]:
        """The frames as RGB images."""
        return [render(self.frame(number)) for number in range(self.frames)]


def sample_clip(rng: np.random.Generator, rows: int, columns: int, frames: int, cell_pixels: int = 28) -> Clip:
    """A random clip: one object moves, one comes or goes, others stand; every shape and colour is there once."""
    shapes, colours = rng.permutation(SHAPES), rng.permutation(list(COLOURS))
    lanes = rng.permutation(rows // 2)[: int(rng.integers(3, 5))]
    actors = []
    for number, lane in enumerate(lanes):
        item = SceneObject(str(shapes[number]), str(colours[number]), "", 0.0, float(2 * lane + 1), _SIZE)
        actors.append(_act(rng, item, number, rows, columns, frames))
    scene = Scene(rows, columns, columns * cell_pixels, rows * cell_pixels, (), int(rng.integers(2**31)))
    return Clip(scene, frames, tuple(actors))


def _act(rng: np.random.Generator, item: SceneObject, number: int, rows: int, columns: int, frames: int) -> Actor:
    """The first object moves along its lane, the second comes or goes, the others stand."""
    room = columns - _SIZE
    if number == 0:
        travel = float(rng.uniform(0.5, 1.0)) * room
        to_right = bool(rng.random() < 0.5)
        start = float(rng.uniform(0, room - travel)) + _SIZE / 2
        step = travel / max(1, frames - 1)
        return Actor(replace(item, x=start if to_right else start + travel), 0, frames - 1, dx=step if to_right else -step)
    item = replace(item, x=float(rng.uniform(0, room)) + _SIZE / 2)
    if number == 1:
        moment = int(rng.integers(frames // 3, max(frames // 3 + 1, 2 * frames // 3)))
        return Actor(item, moment, frames - 1) if rng.random() < 0.5 else Actor(item, 0, moment)
    return Actor(item, 0, frames - 1)


def ask_clip(rng: np.random.Generator, clip: Clip, count: int) -> list[Question]:
    """Up to `count` different questions about a clip."""
    moving = next(actor for actor in clip.actors if actor.direction)
    changing = next(actor for actor in clip.actors if clip.changes(actor))
    comes = changing.first > 0
    event, kind = ("appears", "appears") if comes else ("vanishes", "vanishes")
    standing = clip.actors[int(rng.integers(len(clip.actors)))]
    questions = [
        Question("moves", f"Which shape moves {moving.direction}?", moving.item.shape),
        Question("direction", f"Where does the {moving.item.colour} object move?", moving.direction),
        Question(kind, f"What colour {event}?", changing.item.colour),
        Question(kind, f"What shape {event}?", changing.item.shape),
        Question("colour", f"What colour is the {standing.item.shape}?", standing.item.colour),
    ]
    return [questions[index] for index in rng.permutation(len(questions))[:count]]

"""What is asked: drawn pictures that no cache knows, or a user's own folder."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from foveate.bench.plan import BenchPlan
from foveate.engines import DataError
from foveate.samples import QUESTIONS, Sample, read_samples

QUESTION = "What is in the picture? Name the shapes from the left to the right, their colours, and how many there are of each."
TEXT_QUESTION = "Tell a short story about a clock maker who finds {number} gears in a drawer, and say how it ends."
_SHAPES = 12
_COLOURS = 16

Content = list[dict[str, Any]]
"""The parts of a user's message, as the API has them."""
Ask = Callable[[int, int], tuple[Content, bool]]
"""Gets the place in a point and a number that no other request has; gives the message and whether it has a picture."""


@dataclass(frozen=True)
class Questions:
    """Where the requests' contents come from.

    Attributes:
        name: what a report says.
        ask: makes one.
        repeats: whether pictures come again, so that a server's caches may know them.
    """

    name: str
    ask: Ask
    repeats: bool


def open_questions(plan: BenchPlan) -> Questions:
    """Those of the plan's folder, or drawn ones.

    At the same place of every point stands the same kind of question: with a picture, or text alone.

    Raises:
        DataError: the folder has none, or one that can't be sent.
    """
    if plan.data is None:
        width, height = plan.image_size
        return Questions(_named(f"Drawn pictures of {width} x {height} pixels", plan), _mixed(plan, _drawn(plan)), False)
    samples = read_samples(plan.data)
    for sample in samples:
        _check(sample, plan.data)
    name = f"{len(samples)} questions of {plan.data.resolve().name}"
    return Questions(_named(name, plan), _mixed(plan, _of_folder(samples, plan.seed)), True)


def _named(name: str, plan: BenchPlan) -> str:
    return f"{name}, {100 * plan.text_only:g} % of text alone" if plan.text_only else name


def _mixed(plan: BenchPlan, ask: Callable[[int, int], Content]) -> Ask:
    """With the plan's share of text alone."""

    def mixed(place: int, number: int) -> tuple[Content, bool]:
        if np.random.default_rng([plan.seed, place]).random() < plan.text_only:
            return [_text(TEXT_QUESTION.format(number=number))], False
        return ask(place, number), True

    return mixed


def _drawn(plan: BenchPlan) -> Callable[[int, int], Content]:
    def ask(place: int, number: int) -> Content:
        picture = draw_picture(plan.image_size, np.random.default_rng([plan.seed, 1, number]))
        return [_image(picture, "image/png"), _text(QUESTION)]

    return ask


def draw_picture(size: tuple[int, int], chance: np.random.Generator) -> bytes:
    """A PNG of plain shapes: of 16 colours, so that its file is small and drawing it takes a few milliseconds."""
    image = Image.new("P", size, 0)
    image.putpalette(chance.integers(0, 256, 3 * _COLOURS, dtype=np.uint8).tobytes())
    canvas = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        left, top = chance.integers(0, size)
        width, height = chance.integers(1, np.maximum(2, np.array(size) // 2))
        corners = [int(edge) for edge in (left, top, left + width, top + height)]
        draw = (canvas.rectangle, canvas.ellipse)[chance.integers(2)]
        draw(corners, fill=int(chance.integers(1, _COLOURS)))
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def _check(sample: Sample, folder: Path) -> None:
    if sample.fps is not None or sample.frame_rule is not None:
        raise DataError(
            f"{folder / QUESTIONS} sets fps or frame_rule of a video, which a chat request can't. Leave them out of the line."
        )


def _of_folder(samples: list[Sample], seed: int) -> Callable[[int, int], Content]:
    order = np.random.default_rng(seed).permutation(len(samples))

    def ask(place: int, number: int) -> Content:
        sample = samples[order[place % len(samples)]]
        file = Path(sample.source)
        media = _image if sample.image else _video
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return [media(file.read_bytes(), kind), _text(sample.question)]

    return ask


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(content: bytes, kind: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _data_url(content, kind)}}


def _video(content: bytes, kind: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": _data_url(content, kind)}}


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def chat_body(content: Content, model: str, plan: BenchPlan, keep: float | None) -> bytes:
    """A streamed, greedy chat request.

    Args:
        content: of the user's message.
        model: that is to answer.
        plan: longest answer, and what the vision tower is to compute.
        keep: for foveate's servers; None leaves it out.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": plan.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if plan.ignore_eos:
        body["ignore_eos"] = True
    if keep is not None:
        body["foveate"] = {"keep": keep} if plan.encode is None else {"keep": keep, "encode": plan.encode}
    return msgspec.json.encode(body)

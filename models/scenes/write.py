"""Writes a split as a folder: `python -m models.scenes.write --split heldout --count 500 -o DIR`.

The folder holds `images/*.png`, `videos/*.mkv` or `pages/*.png` and `questions.jsonl`, one object a line: `{"image",
"question", "answer", "type"}` (or `"video"`), with paths relative to the folder. Without `--world` the scenes are those that
`models/qwen2-vl-tiny` began with; `--world NAME --kind video` draws clips for the checkpoint of that name. `--kind page` draws
documents, tables and user interfaces, which are any world's, and says what share of their cells repeats the pixels of a
neighbour. Clips are stored without loss, one frame a second, and their questions say that the model sees each of them
(`"frame_rule": "interval", "fps": 1`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from PIL import Image

from models.documents.page import PAGE_TYPES, repeated_share, sample_page
from models.documents.render import render_page
from models.scenes.dataset import SPLITS, sample
from models.scenes.render import render
from models.scenes.tasks import sample_task
from models.scenes.world import Question
from models.scenes.worlds import WORLDS


def write_clip(path: Path, frames: Sequence[Image.Image]) -> None:
    """FFV1 in Matroska: every pixel comes back as it was."""
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=1, options={"level": "3"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), "rgb24").reformat(format="bgr0")))
        file.mux(stream.encode())


def write_task(
    folder: Path, world: str | None, kind: str, split: str, seed: int, index: int, count: int, types: Collection[str]
) -> list[dict[str, Any]]:
    """The picture or clip of one task, and the rows of its questions."""
    asked: list[Question]
    if kind == "page":
        page, asked = sample_page(split, seed, index, count, types)
        pictures = [render_page(page)]
    elif world is None:
        scene, asked = sample(split, seed, index, count)
        pictures = [render(scene)]
    else:
        task = sample_task(WORLDS[world], split, seed, index, kind, count)
        pictures, asked = task.pictures(), task.questions
    name = f"{kind}s/{index:06d}.{'mkv' if kind == 'video' else 'png'}"
    if kind == "video":
        write_clip(folder / name, pictures)
    else:
        pictures[0].save(folder / name)
    seen = {"frame_rule": "interval", "fps": 1} if kind == "video" else {}
    field = "video" if kind == "video" else "image"
    return [{field: name, "question": q.text, "answer": q.answer, "type": q.type, **seen} for q in asked]


@click.command(help=__doc__)
@click.option("--split", type=click.Choice(list(SPLITS)), required=True)
@click.option("--world", type=click.Choice(list(WORLDS)), help="Checkpoint whose images and clips to draw.")
@click.option(
    "--kind", "kinds", type=click.Choice(["image", "video", "page"]), multiple=True, default=["image"], show_default=True
)
@click.option("--count", default=100, show_default=True, help="Number of scenes, of clips, and of pages.")
@click.option("--questions", default=1, show_default=True, help="Questions about each.")
@click.option("--type", "types", type=click.Choice(PAGE_TYPES), multiple=True, help="Of questions about pages; all without it.")
@click.option("--seed", default=0, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    split: str,
    world: str | None,
    kinds: tuple[str, ...],
    count: int,
    questions: int,
    types: tuple[str, ...],
    seed: int,
    first: int,
    output: Path,
) -> None:
    if "video" in kinds and world is None:
        raise click.UsageError("clips need --world, the checkpoint that they are drawn for.")
    if types and "page" not in kinds:
        raise click.UsageError("--type is for pages. Add --kind page, or leave it out.")
    rows = []
    for kind in kinds:
        (output / f"{kind}s").mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            rows += write_task(output, world, kind, split, seed, index, questions, types or PAGE_TYPES)
        if kind == "page":
            shares = [repeated_share(np.asarray(Image.open(path).convert("RGB"))) for path in (output / "pages").glob("*.png")]
            click.echo(f"{np.mean(shares):.0%} of the cells of a page repeat the pixels of the cell to the left or above")
    (output / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    click.echo(f"{len(rows)} questions about {count} {'s and '.join(kinds)}s in {output}")


if __name__ == "__main__":
    main()

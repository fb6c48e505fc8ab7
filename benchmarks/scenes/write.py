"""Writes a split as a folder: `python -m benchmarks.scenes.write --split heldout --count 500 -o DIR`.

The folder holds `images/*.png` and `questions.jsonl`, one object a line: `{"image", "question", "answer", "type"}`,
with `image` relative to the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks.scenes.dataset import SPLITS, sample
from benchmarks.scenes.render import render


@click.command(help=__doc__)
@click.option("--split", type=click.Choice(list(SPLITS)), required=True)
@click.option("--count", default=100, show_default=True, help="Number of scenes.")
@click.option("--questions", default=1, show_default=True, help="Questions a scene.")
@click.option("--seed", default=0, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first scene.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(split: str, count: int, questions: int, seed: int, first: int, output: Path) -> None:
    (output / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(first, first + count):
        scene, asked = sample(split, seed, index, questions)
        name = f"images/{index:06d}.png"
        render(scene).save(output / name)
        rows += [{"image": name, "question": q.text, "answer": q.answer, "type": q.type} for q in asked]
    (output / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    click.echo(f"{len(rows)} questions about {count} scenes in {output}")


if __name__ == "__main__":
    main()

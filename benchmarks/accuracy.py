"""Accuracy of a bundle on the held-out scenes, by question type and keep ratio.

    python -m benchmarks.accuracy tiny.bundle --split heldout --count 2000 --keep 1 --keep 0.5 --keep 0.25

Every question is asked on its own through the exported graphs; an answer counts when it equals the right one.
Vision features are computed anew for each question: this measures answers, not time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

import foveate
from benchmarks.scenes.dataset import SPLITS, sample
from benchmarks.scenes.render import render
from benchmarks.scenes.world import QUESTION_TYPES


def measure(
    pipe: foveate.Pipeline, split: str, count: int, keeps: tuple[float, ...], seed: int
) -> dict[str, dict[str, list[bool]]]:
    """`keep ratio -> question type -> right or wrong`, one question about each of `count` scenes."""
    hits: dict[str, dict[str, list[bool]]] = {str(keep): defaultdict(list) for keep in keeps}
    for index in track(range(count), description=split):
        scene, questions = sample(split, seed, index)
        image = render(scene)
        for question in questions:
            for keep in keeps:
                answer = pipe.generate(foveate.Request.ask(question.text, [image], keep=keep))
                hits[str(keep)][question.type].append(answer.text == question.answer)
    return hits


def summarise(hits: dict[str, dict[str, list[bool]]]) -> dict[str, dict[str, float]]:
    """Share of right answers by keep ratio and question type, with `all` over every question."""
    rows = {}
    for keep, types in hits.items():
        every = [hit for values in types.values() for hit in values]
        shares = {name: sum(types[name]) / len(types[name]) for name in QUESTION_TYPES if types[name]}
        rows[keep] = {**shares, "all": sum(every) / len(every), "questions": len(every)}
    return rows


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(list(SPLITS)), default="heldout", show_default=True)
@click.option("--count", default=2000, show_default=True, help="Number of scenes, one question each.")
@click.option("--keep", "keeps", multiple=True, type=float, default=(1.0, 0.5, 0.25), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file for the figures.")
def main(bundle: Path, split: str, count: int, keeps: tuple[float, ...], seed: int, output: Path | None) -> None:
    rows = summarise(measure(foveate.load(bundle), split, count, keeps, seed))
    table = Table("keep", *QUESTION_TYPES, "all", title=f"{split}, seed {seed}, {count} questions")
    for keep, row in rows.items():
        table.add_row(keep, *(f"{row[name]:.1%}" if name in row else "-" for name in (*QUESTION_TYPES, "all")))
    Console(width=140).print(table)
    if output:
        output.write_text(json.dumps({"split": split, "seed": seed, "count": count, "accuracy": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

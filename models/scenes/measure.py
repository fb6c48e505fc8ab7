"""Right answers of a checkpoint at keep 1: `python -m models.scenes.measure NAME --split validation --kind page --count 100`.

It runs what training runs, without an export; an answer is right if each of its tokens and its end are the most likely ones.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import torch

from models.scenes.batches import Batch, Batches, join_feeds
from models.scenes.dataset import SPLITS, sample
from models.scenes.learners import LEARNERS
from models.scenes.tasks import TYPES, Kind, Task, World, sample_task
from models.scenes.train import Trainer, question_hits
from models.scenes.worlds import WORLDS


def draw(world: World, split: str, seed: int, index: int, kind: Kind, questions: int) -> Task:
    """A task of a split; single images are those that `models.scenes.write` writes, of one world for all."""
    if kind != "image":
        return sample_task(world, split, seed, index, kind, questions)
    scene, asked = sample(split, seed, index, questions)
    return Task("image", (scene,), asked)


@torch.no_grad()
def measure(trainer: Trainer, split: str, seed: int, kind: Kind, count: int, questions: int) -> dict[str, list[bool]]:
    """Which questions about `count` tasks are answered right, by type."""
    batches, found = Batches(trainer.learner), defaultdict(list)
    for index in range(count):
        task = draw(WORLDS["qwen2-vl-tiny"], split, seed, index, kind, questions)
        visuals = batches.visuals(task)
        feeds = join_feeds([visuals])
        batch = Batch(kind, feeds, {}, *batches.sequences([task], visuals))
        embeds = trainer.learner.pack(trainer.learner.see(feeds), feeds)
        hits = question_hits(batch, trainer.answer_logits(batch, embeds))
        for number, right in zip(batch.types[0].tolist(), hits[0].tolist(), strict=True):
            found[TYPES[number]].append(right)
    return found


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(LEARNERS)))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder; without it models/NAME.")
@click.option("--split", type=click.Choice(list(SPLITS)), default="validation", show_default=True)
@click.option("--kind", type=click.Choice(["image", "images", "video", "page"]), default="image", show_default=True)
@click.option("--count", default=100, show_default=True, help="Images, clips or pages.")
@click.option("--questions", default=4, show_default=True, help="About each.")
@click.option("--seed", default=0, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for a copy of the checkpoint.")
def main(name: str, checkpoint: Path | None, split: str, kind: Kind, count: int, questions: int, seed: int, work: Path) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(name, 0, work, checkpoint or Path("models") / name)
    found = measure(trainer, split, seed, kind, count, questions)
    for kind_of, hits in sorted(found.items()):
        click.echo(f"  {kind_of:12} {sum(hits):4} of {len(hits)}")
    right = [hit for hits in found.values() for hit in hits]
    click.echo(f"{name}, {split}, {kind}: {sum(right)} of {len(right)}, {sum(right) / len(right):.1%}")


if __name__ == "__main__":
    main()

"""Writes a checkpoint of a published model's true shape, with random weights and a random scorer.

    python -m models.true_shapes.write qwen2-vl-2b FOLDER

It takes 4.4 GB for `qwen2-vl-2b`, 1.8 GB for `llava-onevision-0.5b` and 6.3 GB for `vila1.5-3b`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from models.true_shapes.llava_onevision import write_llava_onevision
from models.true_shapes.qwen2_vl import write_qwen2_vl
from models.true_shapes.vila import write_vila
from models.true_shapes.weights import write_random_scorer

MODELS: dict[str, Callable[[Path, int | None], None]] = {
    "qwen2-vl-2b": write_qwen2_vl,
    "llava-onevision-0.5b": write_llava_onevision,
    "vila1.5-3b": write_vila,
}


def write_checkpoint(name: str, folder: Path, layers: int | None = None) -> Path:
    """The checkpoint in `folder`, with as many layers of the decoder and of the tower; gives its scorer."""
    MODELS[name](folder, layers)
    return write_random_scorer(folder)


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(MODELS)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", type=int, help="Of the decoder and of the tower, for a quick try.")
def main(name: str, folder: Path, layers: int | None) -> None:
    write_checkpoint(name, folder, layers)


if __name__ == "__main__":
    main()

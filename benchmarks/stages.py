"""Time of each stage and KV cache over keep ratios, for one image and one question: warm medians from one process.

    python -m benchmarks.stages x.bundle --image-size 1008x672 --repeats 5

The answers mean nothing where the weights are random; the work does not depend on them.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import foveate
from foveate.cli.options import SessionChoice, session_options

STAGES = ("preprocess_ms", "vision_ms", "score_ms", "select_ms", "embed_ms", "prefill_ms", "ttft_ms", "tpot_ms")
QUESTION = "What colour is the object above the red circle with the word cat on it, and how many of them are there?"


def measure(pipe: foveate.Pipeline, image: np.ndarray, keep: float, repeats: int, new_tokens: int) -> list[foveate.Answer]:
    """`repeats` answers after one that warms up; temperature keeps random weights from ending at once."""
    sampling = foveate.Sampling(temperature=1.0, seed=0)
    request = foveate.Request.ask(QUESTION, image, keep=keep, sampling=sampling, max_new_tokens=new_tokens)
    return [pipe.generate(request) for _ in range(repeats + 1)][1:]


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image-size", default="1008x672", show_default=True, help="WIDTHxHEIGHT in pixels.")
@click.option("--keep", "keeps", multiple=True, type=float, default=(1.0, 0.5, 0.25), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--new-tokens", default=8, show_default=True)
@session_options()
def main(
    bundle: Path, image_size: str, keeps: tuple[float, ...], repeats: int, new_tokens: int, session: SessionChoice
) -> None:
    width, height = (int(side) for side in image_size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pipe = foveate.load(bundle, session.backend, session.options, verify=False, vision_cache_bytes=0)
    table = Table("keep", "visual tokens", "prompt tokens", *STAGES, "KV MiB", title=f"{bundle.name}, {image_size} pixels")
    for keep in keeps:
        answers = measure(pipe, image, keep, repeats, new_tokens)
        figures = [median(getattr(answer.timings, stage) for answer in answers) for stage in STAGES]
        selection, answer = answers[0].selection, answers[0]
        kept = f"{len(selection.keep_indices)}/{selection.num_visual_tokens}"
        row = (f"{keep:g}", kept, str(answer.prompt_tokens), *(f"{figure:.1f}" for figure in figures))
        table.add_row(*row, f"{answer.kv_bytes / 2**20:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

"""What a glance saves and costs: right answers, and time to the first token, whole tower against part of it.

    python -m benchmarks.foveated x.bundle DATA --variant 0.25:0.25
    python -m benchmarks.foveated x.bundle --image-size 1008x672 --variant 0.25:0.25

DATA is a folder of questions, as `foveate evaluate` takes it. Without one, every variant is timed on the same noise, in turns,
after a round that warms up. Each variant is an `ENCODE:KEEP`; the whole tower at keep 1 and at each keep are always among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import foveate
from foveate.engines import SessionOptions
from foveate.evaluate.statistics import wilson
from foveate.runtime import Answer, Pipeline
from foveate.runtime.stages import FIRST_TOKEN
from foveate.samples import read_samples

QUESTION = "What colour is the object above the red circle with the word cat on it, and how many of them are there?"


@dataclass(frozen=True)
class Variant:
    """What a request asks for; None has the tower compute everything."""

    encode: float | None
    keep: float

    def __str__(self) -> str:
        return f"{'all' if self.encode is None else f'{self.encode:g}'} : {self.keep:g}"


def variants_of(texts: Sequence[str]) -> list[Variant]:
    """Those asked for, and what they are held against."""
    asked = [Variant(*(float(part) for part in text.split(":"))) for text in texts]
    return list(dict.fromkeys([Variant(None, 1.0), *(Variant(None, one.keep) for one in asked), *asked]))


def answers(pipe: Pipeline, data: Path, variants: Sequence[Variant]) -> Iterator[tuple[Variant, bool, Answer]]:
    """Every question with every variant."""
    for sample in read_samples(data):
        for variant in variants:
            answer = pipe.generate(sample.request(keep=variant.keep, encode=variant.encode, max_new_tokens=8))
            yield variant, sample.answered_by(answer.text), answer


def timed(pipe: Pipeline, size: str, variants: Sequence[Variant], rounds: int) -> Iterator[tuple[Variant, bool, Answer]]:
    """The same noise with every variant in turns; the first round is left out."""
    width, height = (int(side) for side in size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for number in range(rounds + 1):
        for variant in variants:
            request = foveate.Request.ask(
                QUESTION, image, keep=variant.keep, encode=variant.encode, max_new_tokens=2, ignore_eos=True
            )
            answer = pipe.generate(request)
            if number:
                yield variant, False, answer


def table(found: dict[Variant, list[tuple[bool, Answer]]], asked: bool) -> Table:
    """A row for each variant: what the tower and the LLM saw, right answers, and the medians of the stages."""
    right = ("right %",) if asked else ()
    made = Table("encode : keep", "tower", "LLM", *right, "first token ms", *(stage.name for stage in FIRST_TOKEN))
    for variant, pairs in found.items():
        told = [answer for _, answer in pairs]
        whole = sum(answer.selection.num_visual_tokens for answer in told)
        seen = sum(answer.encoding.encoded_tokens if answer.encoding else answer.selection.num_visual_tokens for answer in told)
        kept = sum(len(answer.selection.keep_indices) for answer in told)
        share = wilson(sum(ok for ok, _ in pairs), len(pairs))
        cells = [f"{100 * share.value:.1f} ({100 * share.low:.1f} - {100 * share.high:.1f})"] if asked else []
        stages = [median(getattr(answer.timings, stage.key) for answer in told) for stage in FIRST_TOKEN]
        first = median(answer.timings.ttft_ms for answer in told)
        made.add_row(
            str(variant), f"{seen / whole:.2f}", f"{kept / whole:.2f}", *cells, *(f"{ms:,.1f}" for ms in (first, *stages))
        )
    return made


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option(
    "--variant", "texts", multiple=True, default=("0.25:0.25",), show_default=True, help="ENCODE:KEEP; may be repeated."
)
@click.option("--image-size", default="1008x672", show_default=True, help="Of the noise, without DATA.")
@click.option("--rounds", default=3, show_default=True, help="Of measuring, without DATA.")
@click.option("--vision-backend", help="What runs the vision graph.")
@click.option("--threads", default=0, show_default=True)
def main(
    bundle: Path,
    data: Path | None,
    texts: tuple[str, ...],
    image_size: str,
    rounds: int,
    vision_backend: str | None,
    threads: int,
) -> None:
    found: dict[Variant, list[tuple[bool, Answer]]] = {}
    variants = variants_of(texts)
    options = SessionOptions(threads=threads)
    with foveate.load(bundle, options=options, verify=False, vision_cache_bytes=0, vision_backend=vision_backend) as pipe:
        told = timed(pipe, image_size, variants, rounds) if data is None else answers(pipe, data, variants)
        for variant, right, answer in told:
            found.setdefault(variant, []).append((right, answer))
    Console(width=160).print(table(found, data is not None))


if __name__ == "__main__":
    main()

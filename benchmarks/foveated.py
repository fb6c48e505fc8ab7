"""What a glance saves and costs: right answers, and time to the first token, whole tower against part of it.

    python -m benchmarks.foveated x.bundle DATA --variant 0.25:0.25 --variant R0:all:1 --sizes 256,512
    python -m benchmarks.foveated x.bundle --image-size 1008x672 --variant 0.25:0.25

DATA is a folder of questions, as `foveate evaluate` takes it. Without one, every variant is timed on the same picture, in
turns, after a round that warms up. Each variant is an `ENCODE:KEEP`, as `0.25:0.25`, `auto:0.25` or `all:1`, or that behind the
tolerance of `--redundancy`, as `R0:all:1` or `R0:0.25:0.125`. The whole tower at keep 1 and at each keep are always among them.
"work" is an estimate of the tower's operations, the glance's among them; 1 is every visual token.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import foveate
from foveate.engines import SessionOptions
from foveate.evaluate.statistics import wilson
from foveate.runtime import Answer, Pipeline, Request
from foveate.runtime.encoding import AUTO
from foveate.runtime.encoding.cost import Estimate, spread
from foveate.runtime.stages import FIRST_TOKEN
from foveate.samples import read_samples

QUESTION = "What colour is the object above the red circle with the word cat on it, and how many of them are there?"


@dataclass(frozen=True)
class Variant:
    """What a request asks for; None has the tower compute everything."""

    encode: float | Literal["auto"] | None
    keep: float
    redundancy: int | None = None

    @classmethod
    def of(cls, text: str) -> Variant:
        """From what `--variant` takes."""
        found = re.fullmatch(r"(?:R(\d+):)?(all|auto|[\d.]+):([\d.]+)", text)
        if found is None:
            raise click.BadParameter(f"'{text}' is no variant. Use 0.25:0.25, auto:0.25, R0:all:1 or R0:0.25:0.25.")
        tolerance, encode, keep = found.groups()
        share = {"all": None, "auto": AUTO}[encode] if encode in ("all", AUTO) else float(encode)
        return cls(share, float(keep), None if tolerance is None else int(tolerance))

    def __str__(self) -> str:
        encode = {None: "all", AUTO: AUTO}.get(self.encode) or f"{self.encode:g}"
        return f"{'' if self.redundancy is None else f'R{self.redundancy} : '}{encode} : {self.keep:g}"

    @property
    def options(self) -> dict[str, Any]:
        """Of a request."""
        return {"encode": self.encode, "keep": self.keep, "redundancy": self.redundancy}


def variants_of(texts: Sequence[str]) -> list[Variant]:
    """Those asked for, and what they are held against."""
    asked = [Variant.of(text) for text in texts]
    return list(dict.fromkeys([Variant(None, 1.0), *(Variant(None, one.keep) for one in asked), *asked]))


def answers(pipe: Pipeline, data: Path, variants: Sequence[Variant]) -> Iterator[tuple[Variant, bool, Answer]]:
    """Every question with every variant."""
    for sample in read_samples(data):
        for variant in variants:
            answer = pipe.generate(sample.request(**variant.options, max_new_tokens=8))
            # Without the pictures: thousands of them would not fit into memory.
            yield variant, sample.answered_by(answer.text), replace(answer, pictures=(), part=None)


def picture(width: int, height: int, white: float) -> np.ndarray:
    """Noise, and below it white rows."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[round(height * (1 - white)) :] = 255
    return image


def timed(
    pipe: Pipeline, size: str, white: float, variants: Sequence[Variant], rounds: int
) -> Iterator[tuple[Variant, bool, Answer]]:
    """The same picture with every variant in turns; the first round is left out."""
    image = picture(*(int(side) for side in size.split("x")), white)
    for number in range(rounds + 1):
        for variant in variants:
            answer = pipe.generate(Request.ask(QUESTION, image, **variant.options, max_new_tokens=2, ignore_eos=True))
            if number:
                yield variant, False, answer


def work(answer: Answer) -> float:
    """Of the tower for a request, by the number of operations, in shares of what all visual tokens would have taken.

    The tokens that it computed are spread over the frames alike: an answer does not say where they lie.
    """
    if answer.encoding is None:
        return 1.0
    whole, *seen = (
        sum(Estimate().vision_ms(round(tokens * share)) for tokens in spread(answer.grids))
        for share in (
            1.0,
            *(n / answer.encoding.visual_tokens for n in (answer.encoding.encoded_tokens, answer.encoding.glance_tokens)),
        )
    )
    return sum(seen) / whole


def range_of(number: int, sizes: Sequence[int]) -> str:
    """The visual tokens that lie in a range of those that `sizes` cut."""
    low, high = ([0, *sizes][number], [*sizes, None][number])
    return f"over {low}" if high is None else f"{low + 1} - {high}"


def table(found: dict[tuple[int, Variant], list[tuple[bool, Answer]]], sizes: Sequence[int], asked: bool) -> Table:
    """A row for each variant and range of sizes: what tower and LLM saw, right answers, and the medians of the stages."""
    right = ("right %",) if asked else ()
    made = Table(
        "visual tokens", "encode : keep", "tower", "work", "LLM", *right, "first token ms", *(s.name for s in FIRST_TOKEN)
    )
    for (number, variant), pairs in sorted(found.items(), key=lambda entry: entry[0][0]):
        told = [answer for _, answer in pairs]
        whole = sum(answer.selection.num_visual_tokens for answer in told)
        seen = sum(answer.encoding.encoded_tokens if answer.encoding else answer.selection.num_visual_tokens for answer in told)
        kept = sum(len(answer.selection.keep_indices) for answer in told)
        spent = sum(work(answer) for answer in told) / len(told)
        share = wilson(sum(ok for ok, _ in pairs), len(pairs))
        cells = [f"{100 * share.value:.1f} ({100 * share.low:.1f} - {100 * share.high:.1f})"] if asked else []
        stages = [median(getattr(answer.timings, stage.key) for answer in told) for stage in FIRST_TOKEN]
        first = median(answer.timings.ttft_ms for answer in told)
        made.add_row(
            f"{range_of(number, sizes)} (n = {len(told)})",
            str(variant),
            *(f"{value:.2f}" for value in (seen / whole, spent, kept / whole)),
            *cells,
            *(f"{ms:,.1f}" for ms in (first, *stages)),
        )
    return made


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option(
    "--variant",
    "texts",
    multiple=True,
    default=("0.25:0.25",),
    show_default=True,
    help="[RTOLERANCE:]ENCODE:KEEP; may be repeated.",
)
@click.option("--sizes", default="", help="Numbers of visual tokens between which rows are apart, as 256,512.")
@click.option("--image-size", default="1008x672", show_default=True, help="Of the picture, without DATA.")
@click.option("--white", default=0.0, show_default=True, help="Share of the picture that is white, without DATA.")
@click.option("--rounds", default=3, show_default=True, help="Of measuring, without DATA.")
@click.option("--vision-backend", help="What runs the vision graph.")
@click.option("--threads", default=0, show_default=True)
def main(
    bundle: Path,
    data: Path | None,
    texts: tuple[str, ...],
    sizes: str,
    image_size: str,
    white: float,
    rounds: int,
    vision_backend: str | None,
    threads: int,
) -> None:
    found: dict[tuple[int, Variant], list[tuple[bool, Answer]]] = {}
    variants, edges = variants_of(texts), sorted(int(size) for size in sizes.split(",") if size)
    options = SessionOptions(threads=threads)
    with foveate.load(bundle, options=options, verify=False, vision_cache_bytes=0, vision_backend=vision_backend) as pipe:
        told = timed(pipe, image_size, white, variants, rounds) if data is None else answers(pipe, data, variants)
        for variant, right, answer in told:
            number = bisect_left(edges, answer.selection.num_visual_tokens)
            found.setdefault((number, variant), []).append((right, answer))
    Console(width=180).print(table(found, edges, data is not None))


if __name__ == "__main__":
    main()

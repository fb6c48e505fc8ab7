"""Whether `--encode auto` chooses right: every request the way that auto takes, and every way that it could have taken.

    foveate profile x.bundle -o profile.html --save
    python -m benchmarks.auto x.bundle IMAGES --keep 0.25 --count 200

IMAGES are folders of pictures; pictures of all of them are asked about in turns. Each is answered by the whole tower, without
redundant visual tokens, after a glance, and by auto, round by round after one that warms up; its times are the shortest of the
rounds. A choice is right where its way took at most a tenth more than the fastest, as auto takes the one that looks at more of
two that are about the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

import foveate
from benchmarks.foveated import QUESTION, Variant
from foveate.engines import SessionOptions
from foveate.runtime import Answer, Pipeline, Request

SUFFIXES = {".jpg", ".jpeg", ".png"}
TOLERANCE = 1.1


class Asked(NamedTuple):
    """One picture.

    Attributes:
        visual_tokens: that it has.
        chosen: the way that auto took.
        ways_ms: time to first token of each way.
        auto_ms: that of auto.
    """

    visual_tokens: int
    chosen: str
    ways_ms: dict[str, float]
    auto_ms: float

    @property
    def right(self) -> bool:
        return self.ways_ms[self.chosen] <= TOLERANCE * min(self.ways_ms.values())

    @property
    def against_whole(self) -> float:
        return self.auto_ms / self.ways_ms["whole"]


def pictures(folders: Sequence[Path], count: int) -> Iterator[Path]:
    """In turns from each folder."""
    found = [sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES) for folder in folders]
    return islice(chain.from_iterable(zip(*found, strict=False)), count)


def way(answer: Answer) -> str:
    """Which way an answer took."""
    encoding = answer.encoding
    if encoding is None or encoding.encoded_tokens == encoding.visual_tokens:
        return "whole"
    return "glance" if encoding.glance_tokens else "redundancy"


def ask(pipe: Pipeline, path: Path, keep: float, rounds: int) -> Asked:
    """One picture, all ways in turns. A way that was not to be had took the time of the whole tower."""
    ways = {"whole": Variant(None, keep), "redundancy": Variant(None, keep, 0), "glance": Variant(keep, keep, 0)}
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, variant in {**ways, "auto": Variant("auto", keep)}.items():
            answer = pipe.generate(Request.ask(QUESTION, path, **variant.options, max_new_tokens=1))
            if number:
                times.setdefault(name, []).append(answer.timings.ttft_ms)
    shortest = {name: min(taken) for name, taken in times.items()}
    auto_ms = shortest.pop("auto")
    return Asked(answer.selection.num_visual_tokens, way(answer), shortest, auto_ms)


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--keep", default=0.25, show_default=True)
@click.option("--count", default=200, show_default=True, help="Of pictures.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--vision-backend", help="What runs the vision graph.")
@click.option("--threads", default=0, show_default=True)
def main(
    bundle: Path, folders: Sequence[Path], keep: float, count: int, rounds: int, vision_backend: str | None, threads: int
) -> None:
    options = SessionOptions(threads=threads)
    with foveate.load(bundle, options=options, verify=False, vision_cache_bytes=0, vision_backend=vision_backend) as pipe:
        planned = "measured times" if isinstance(pipe.latency, foveate.runtime.latency.LatencyModel) else "operations"
        asked = [ask(pipe, path, keep, rounds) for path in pictures(folders, count)]
    table = Table("way", "chosen", "right", "visual tokens", "auto / whole, median", "worst")
    for name, number in Counter(one.chosen for one in asked).most_common():
        own = [one for one in asked if one.chosen == name]
        sizes = [one.visual_tokens for one in own]
        against = sorted(one.against_whole for one in own)
        right = sum(one.right for one in own)
        table.add_row(
            name, str(number), str(right), f"{min(sizes)} - {max(sizes)}", f"{median(against):.2f}", f"{against[-1]:.2f}"
        )
    Console(width=120).print(table)
    right, slower = sum(one.right for one in asked), sum(one.against_whole > 1.05 for one in asked)
    click.echo(f"by {planned}: {right} of {len(asked)} right, {slower} more than 5 % slower than the whole tower")


if __name__ == "__main__":
    main()

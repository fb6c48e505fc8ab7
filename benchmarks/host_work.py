"""What the host does between the graphs: its share of the time to first token, and of a decode step.

    python -m benchmarks.host_work x.bundle --image-size 1120x700

`in graphs` is time inside the sessions' `run`, with the binding of their arrays; the rest is the host's: images to patches, the
prompt, selection, the decode loop. `--profile` lists the functions that it goes to, in one run of their own.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import foveate
from foveate.engines import Bundle, Session, open_sessions
from foveate.engines.backends.session import Arrays
from foveate.runtime import Pipeline
from foveate.runtime.pipeline import open_tokenizer

QUESTION = "What colour is the object above the red circle with the word cat on it, and how many of them are there?"


class Timed:
    """A session that adds up the seconds of its runs."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.spec, self.memory, self.close = inner.spec, inner.memory, inner.close
        self.seconds = 0.0

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, Any]:
        start = perf_counter()
        try:
            return self._inner.run(feeds, buffers)
        finally:
            self.seconds += perf_counter() - start


def open_timed(path: Path) -> tuple[Pipeline, dict[str, Timed]]:
    """A pipeline without a vision cache, and its sessions."""
    bundle = Bundle.open(path, verify=False)
    sessions = {name: Timed(session) for name, session in open_sessions(bundle).items()}
    return Pipeline(bundle.manifest, open_tokenizer(bundle), sessions, vision_cache_bytes=0), sessions


def take_seconds(sessions: Mapping[str, Timed]) -> float:
    """What the sessions added up since the last time."""
    total = sum(session.seconds for session in sessions.values())
    for session in sessions.values():
        session.seconds = 0.0
    return total


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image-size", default="1120x700", show_default=True, help="WIDTHxHEIGHT in pixels.")
@click.option("--keep", "keeps", multiple=True, type=float, default=(1.0, 0.25), show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--new-tokens", default=32, show_default=True)
@click.option("--profile", is_flag=True, help="List the host's functions.")
def main(bundle: Path, image_size: str, keeps: tuple[float, ...], repeats: int, new_tokens: int, profile: bool) -> None:
    width, height = (int(side) for side in image_size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pipe, sessions = open_timed(bundle)

    def run(keep: float) -> tuple[foveate.Answer, float, float, float, float]:
        """The answer; seconds to the first token, of them in the graphs; seconds of the others, of them in the graphs."""
        start = perf_counter()
        stream = pipe.stream(foveate.Request.ask(QUESTION, image, keep=keep, max_new_tokens=new_tokens, ignore_eos=True))
        first, inside = perf_counter() - start, take_seconds(sessions)
        start = perf_counter()
        (answer,) = stream.answers()
        return answer, first, inside, perf_counter() - start, take_seconds(sessions)

    table = Table("keep", "visual tokens", "first token ms", "in graphs ms", "host ms", "host %", "step ms", "host ms a step")
    with pipe:
        for keep in keeps:
            found = [run(keep) for _ in range(repeats + 1)][1:]
            first, inside, steps, steps_inside = (median(figures[place] for figures in found) for place in range(1, 5))
            selection, count = found[0][0].selection, new_tokens - 1
            table.add_row(
                f"{keep:g}",
                f"{len(selection.keep_indices)} of {selection.num_visual_tokens}",
                *(f"{1e3 * seconds:,.1f}" for seconds in (first, inside, first - inside)),
                f"{100 * (first - inside) / first:.2f}",
                f"{1e3 * steps / count:.2f}",
                f"{1e3 * (steps - steps_inside) / count:.3f}",
            )
        Console(width=140).print(table)
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(run, keeps[-1])
            pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()

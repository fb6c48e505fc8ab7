"""A burst that is too much: how many requests begin in time with `--ttft-slo-ms`, and how many without.

    python -m benchmarks.burst BUNDLE DATA

BUNDLE has a retention curve (`foveate export --calibrate`) and latencies of this machine (`foveate profile --save`). First the
questions are asked one after the other: the time of one at keep 1 is what the machine can do. Then they arrive `--times` as
fast, by a Poisson process of a fixed seed, once with everything kept and once as flexible requests. How many right answers
stayed is told against those asked alone. No picture comes twice.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np

from foveate.runtime import Answer, Pipeline, load
from foveate.runtime.scheduler import EngineOptions
from foveate.samples import Sample, read_samples

WARM_UP = 3


@dataclass(frozen=True)
class Outcome:
    """One burst.

    Attributes:
        name: `keep 1` or `flexible`.
        requests: that came.
        in_time: share whose first token came within the objective.
        right: answers.
        p50_ms, p95_ms: of the time to the first token, from when a request came.
        kept: how often each share of the visual tokens was kept, and what the tower saw.
    """

    name: str
    requests: int
    in_time: float
    right: int
    p50_ms: float
    p95_ms: float
    kept: dict[str, int]


def alone(pipe: Pipeline, samples: Sequence[Sample]) -> tuple[float, int]:
    """Milliseconds from one answer to the next at keep 1, the median, and how many are right."""
    taken, right = [], 0
    for sample in samples:
        pipe.vision_cache.clear()
        began = time.perf_counter()
        answer = pipe.generate(sample.request(keep=1.0))
        taken.append(1e3 * (time.perf_counter() - began))
        right += sample.answered_by(answer.text)
    return median(taken[WARM_UP:]), right


def burst(pipe: Pipeline, samples: Sequence[Sample], gap_ms: float, slo_ms: float, floor: float, flexible: bool) -> Outcome:
    """Requests that arrive at random, `gap_ms` apart in the mean."""
    pipe.vision_cache.clear()
    gaps = np.random.default_rng(0).exponential(gap_ms / 1e3, len(samples))
    options = EngineOptions(max_waiting=len(samples), ttft_slo_ms=slo_ms if flexible else None, min_retained=floor)
    with pipe.engine(options) as engine:
        due, tickets = time.monotonic(), []
        for sample, gap in zip(samples, gaps, strict=True):
            due += gap
            time.sleep(max(0.0, due - time.monotonic()))
            tickets.append(engine.submit(sample.request(), flexible=flexible))
        answers = [ticket.answer(600) for ticket in tickets]
    ttft = np.array([answer.timings.ttft_ms for answer in answers])
    return Outcome(
        "flexible" if flexible else "keep 1",
        len(samples),
        float((ttft <= slo_ms).mean()),
        sum(sample.answered_by(answer.text) for sample, answer in zip(samples, answers, strict=True)),
        *np.percentile(ttft, (50, 95)).tolist(),
        dict(Counter(map(_kept, answers))),
    )


def _kept(answer: Answer) -> str:
    selection, encoding = answer.selection, answer.encoding
    total = selection.num_visual_tokens
    seen = total if encoding is None else encoding.encoded_tokens
    return f"{seen / total:.2f}:{len(selection.keep_indices) / total:.2f}"


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--count", default=100, show_default=True, help="Requests of a burst.")
@click.option("--times", default=4.0, show_default=True, help="As fast as the machine can answer.")
@click.option("--slo", default=8.0, show_default=True, help="The objective, in times of one answer alone.")
@click.option("--floor", default=0.9, show_default=True, help="Of right answers that stay.")
@click.option("--rounds", default=1, show_default=True)
def main(bundle: Path, data: Path, count: int, times: float, slo: float, floor: float, rounds: int) -> None:
    first: dict[str, Sample] = {}
    for sample in read_samples(data):
        first.setdefault(sample.source, sample)
    samples = list(first.values())[:count]
    with load(bundle) as pipe:
        one_ms, right = alone(pipe, samples)
        slo_ms = slo * one_ms
        click.echo(f"one answer alone {one_ms:.0f} ms, {right} of {len(samples)} right, objective {slo_ms:.0f} ms")
        for _ in range(rounds):
            for flexible in (False, True):
                found = burst(pipe, samples, one_ms / times, slo_ms, floor, flexible)
                click.echo(json.dumps(asdict(found) | {"retained": round(found.right / max(1, right), 4)}))


if __name__ == "__main__":
    main()

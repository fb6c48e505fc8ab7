"""Many clients on one server: throughput and waits against one client, against keep 1, and against OpenVINO GenAI.

    python -m benchmarks.load --work out/peers
    python -m benchmarks.load --work out/peers --case clients --case keep-tiny

Every round starts each case's server anew and measures all of its points, so that what is compared comes from one run. What was
measured stays in a load.jsonl of WORK: a run that was ended goes on where it was. Cases at true shape use the checkpoint and
the models that `python -m benchmarks.peers` made in the same WORK, or make them. The machine has to be idle.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import click
import msgspec
import numpy as np
from PIL import Image

from benchmarks.pages import table
from benchmarks.peers.load_job import LoadJob
from benchmarks.peers.workplace import ROOT, Workplace, once
from foveate.bench import BenchPlan, LoadPoint
from foveate.bench.questions import QUESTION, draw_picture
from foveate.bench.results import Sent, summarise
from foveate.bench.run import bench_server
from foveate.bench.server import serve_bundle
from foveate.engines import replace_file
from foveate.runtime.encoding import Encode

REFERENCE = ROOT / "models" / "qwen2-vl-tiny"
TRUE_SIZE = (1008, 672)
PEER = "openvino"

Measure = Callable[[Sequence[LoadPoint]], float]
"""A ratio, or another figure, of the points of one round."""


class Line(msgspec.Struct, frozen=True):
    """A round of a case."""

    case: str
    round: int
    points: list[LoadPoint]


@dataclass(frozen=True)
class Case:
    """What is measured, and what is to come out.

    Attributes:
        plan: of each round.
        precision: of the true shape; empty for the reference checkpoint in fp32.
        figures: by what a table calls each, how it is had of the points, and the least or most that it should be.
        peer: measured beside it with the plan's first number of clients, at each of these keep ratios.
        ways: of serving, each a server of its own: words of `foveate serve`, and what requests ask of the vision tower.
    """

    plan: BenchPlan
    precision: str
    figures: dict[str, tuple[Measure, float, bool]]
    peer: tuple[float, ...] = ()
    ways: tuple[tuple[tuple[str, ...], Encode | None], ...] = (((), None),)


def _point(points: Sequence[LoadPoint], clients: int, keep: float = 1.0, kind: str = "closed") -> LoadPoint:
    return next(point for point in points if (point.value, point.keep, point.kind) == (clients, keep, kind))


def _tokens_ratio(clients: int) -> Measure:
    def ratio(points: Sequence[LoadPoint]) -> float:
        many, one = (_point(points, number).figures.output_tokens_per_second for number in (clients, 1))
        return many / one

    return ratio


def _longest_gap(points: Sequence[LoadPoint]) -> float:
    """Of all requests of several clients, over the median gap of its request."""
    found = [point.figures.gap_ratio for point in points if point.value > 1]
    return max(ratio.max for ratio in found if ratio)


def _keep_ratio(points: Sequence[LoadPoint]) -> float:
    few, all_kept = (_point(points, 8, keep).figures.requests_per_second for keep in (0.25, 1.0))
    return few / all_kept


def _peer_tokens(way: int, keep: float) -> Measure:
    def ratio(points: Sequence[LoadPoint]) -> float:
        ours, peer = points[way].figures, _peers(points)[keep].figures
        return ours.output_tokens_per_second / peer.output_tokens_per_second

    return ratio


def _peer_ttft(way: int, keep: float) -> Measure:
    def ratio(points: Sequence[LoadPoint]) -> float:
        ours, peer = points[way].figures.ttft_ms, _peers(points)[keep].figures.ttft_ms
        assert ours is not None  # a round without answers was not written down
        assert peer is not None
        return peer.p50 / ours.p50

    return ratio


def _peers(points: Sequence[LoadPoint]) -> dict[float, LoadPoint]:
    """Those behind ours, by keep ratio."""
    return {point.keep: point for point in points[len(_WAYS) :]}


_LONG = {"max_tokens": 64, "ignore_eos": True}
_OPENVINO = ("--vision-backend", "openvino")
_WAYS: dict[str, tuple[tuple[str, ...], Encode | None]] = {
    "whole tower": ((), None),
    "whole tower of OpenVINO": (_OPENVINO, None),
    "encode auto": ((), "auto"),
}
"""How foveate serves beside a peer, which sees every picture whole."""
CASES = {
    "clients": Case(
        BenchPlan(clients=(1, 8), requests=64, image_size=(224, 224), **_LONG),
        "",
        {"tokens/s, 8 clients against 1": (_tokens_ratio(8), 4.0, True)},
    ),
    "decode": Case(
        BenchPlan(clients=(1, 4), requests=16, text_only=1.0, **_LONG),
        "int4",
        {"tokens/s, 4 clients against 1, text": (_tokens_ratio(4), 2.2, True)},
    ),
    "mixed": Case(
        BenchPlan(clients=(1, 4), requests=24, text_only=0.5, image_size=(448, 448), **_LONG),
        "int4",
        {
            "tokens/s, 4 clients against 1, text and images": (_tokens_ratio(4), 1.0, True),
            "longest gap over median gap, 4 clients, text and images": (_longest_gap, 3.0, False),
        },
    ),
    "keep-tiny": Case(
        BenchPlan(clients=(8,), keeps=(1.0, 0.25), requests=64, max_tokens=16, ignore_eos=True),
        "",
        {"requests/s, keep 0.25 against keep 1, 8 clients": (_keep_ratio, 1.0, True)},
    ),
    "keep-2b": Case(
        BenchPlan(clients=(8,), keeps=(1.0, 0.25), requests=24, image_size=TRUE_SIZE, max_tokens=16, ignore_eos=True),
        "int4",
        {"requests/s, keep 0.25 against keep 1, 8 clients": (_keep_ratio, 1.0, True)},
    ),
    "peer": Case(
        BenchPlan(clients=(4,), keeps=(0.25,), requests=16, image_size=TRUE_SIZE, max_tokens=32, ignore_eos=True),
        "int4",
        {
            f"{what} at keep 0.25 and {way} against OpenVINO GenAI at keep {keep:g}, 4 clients": (
                measure(number, keep),
                1.0,
                True,
            )
            for number, way in enumerate(_WAYS)
            for keep in (0.25, 1.0)
            for what, measure in (("tokens/s", _peer_tokens), ("TTFT (above 1 is sooner)", _peer_ttft))
        },
        (0.25, 1.0),
        tuple(_WAYS.values()),
    ),
}


def measure(case: Case, place: Workplace, threads: int) -> list[LoadPoint]:
    """One round: foveate's points, then the peer's."""
    bundle = place.model("foveate", case.precision) if case.precision else reference(place)
    points: list[LoadPoint] = []
    for words, encode in case.ways:
        threaded = ["--threads", str(threads)] if threads else []
        with serve_bundle(bundle, [*threaded, *words]) as (url, process):
            points += bench_server(url, replace(case.plan, encode=encode), process=process).points
    return points + [measure_peer(case, place, keep, threads) for keep in case.peer]


def reference(place: Workplace) -> Path:
    """The bundle of the reference checkpoint, exported once."""
    from foveate.exporter import ExportOptions, export

    options = ExportOptions(scorer=REFERENCE / "scorer.safetensors")
    return once(place.folder / "models" / "reference", lambda folder: export(REFERENCE, folder, options))


def measure_peer(case: Case, place: Workplace, keep: float, threads: int) -> LoadPoint:
    """The same load in the peer's own environment and process."""
    plan = case.plan
    chance = np.random.default_rng(plan.seed)
    drawn = [draw_picture(plan.image_size, chance) for _ in range(plan.requests + 1)]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) for picture in drawn])
    inputs = place.folder / "load-pictures.npz"
    np.savez(inputs, pictures=pictures)
    model = str(place.model(PEER, case.precision))
    job = LoadJob(model, str(inputs.absolute()), QUESTION, keep, plan.clients[0], plan.max_tokens, threads)
    reported = place.drive(PEER, "load_openvino", asdict(job))
    requests = msgspec.convert(reported["requests"], list[Sent])
    return LoadPoint(
        kind="closed",
        value=plan.clients[0],
        keep=keep,
        seconds=reported["seconds"],
        figures=summarise(requests, reported["seconds"]),
        memory=None,
        generator_cpu_share=0.0,
        generator_token_us=None,
        requests=requests,
    )


class Lines:
    """The rounds of a file, each a line; what an ended run left half is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.lines = [msgspec.json.decode(line, type=Line) for line in whole]

    def has(self, case: str, number: int) -> bool:
        return any((line.case, line.round) == (case, number) for line in self.lines)

    def add(self, line: Line) -> None:
        """Raises ValueError where a request failed: such a round would flatter the one that sheds load."""
        failed = {kind: count for point in line.points for kind, count in point.figures.errors.items()}
        if failed:
            raise ValueError(f"case {line.case}: requests failed: {failed}. Look at the server, and measure again.")
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, b"".join(msgspec.json.encode(one) + b"\n" for one in self.lines))


class Row(msgspec.Struct, frozen=True):
    """A figure of a case over its rounds."""

    case: str
    figure: str
    values: list[float]
    goal: float
    at_least: bool

    @property
    def met(self) -> bool:
        middle = median(self.values)
        return middle >= self.goal if self.at_least else max(self.values) <= self.goal


def rows(lines: Iterable[Line]) -> Iterator[Row]:
    """In the order of `CASES`, of those that were measured."""
    lines = list(lines)
    for name, case in CASES.items():
        rounds = [line.points for line in lines if line.case == name]
        for figure, (measured, goal, at_least) in case.figures.items() if rounds else ():
            yield Row(name, figure, [measured(points) for points in rounds], goal, at_least)


def shown(found: Iterable[Row]) -> Iterator[str]:
    """A table: medians over the rounds, with the smallest and the largest."""
    return table(
        found,
        {
            "case": lambda row: row.case,
            "figure": lambda row: row.figure,
            "median (range)": lambda row: f"{median(row.values):.2f} ({min(row.values):.2f} - {max(row.values):.2f})",
            "rounds": lambda row: str(len(row.values)),
            "goal": lambda row: f"{'at least' if row.at_least else 'at most'} {row.goal:g}",
            "met": lambda row: "yes" if row.met else "no",
        },
    )


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for environments, models and results.")
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), default=list(CASES), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads of each server.")
@click.option("--layers", type=int, help="Of the true shape's decoder and tower, for a quick try.")
def main(work: Path, names: Sequence[str], rounds: int, threads: int, layers: int | None) -> None:
    place = Workplace(work, layers)
    lines = Lines(place.shape / "load.jsonl")
    for number in range(rounds):
        for name in names:
            if not lines.has(name, number):
                click.echo(f"round {number + 1} of {rounds}: {name}", err=True)
                lines.add(Line(name, number, measure(CASES[name], place, threads)))
    for line in shown(rows(lines.lines)):
        click.echo(line)


if __name__ == "__main__":
    main()

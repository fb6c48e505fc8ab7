"""The charts of a load test, as SVG to stand in a page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np

from foveate.bench.plan import Kind
from foveate.bench.results import Benchmark, LoadPoint
from foveate.charts import COLOURS, WHOLE, Axes, LoadLine, frame, legend, load_panels, room, side_by_side, svg

_ACROSS: dict[Kind, str] = {"closed": "clients at once", "open": "requests sent a second"}
_MOST_STEPS = 400
"""Of a curve of shares; more would only make the page larger."""
_FEW = 4
"""Keep ratios whose names fit above a chart."""


def load_chart(kind: Kind, benchmark: Benchmark, narrow: bool = False) -> str:
    """Throughput and time to first token of each keep ratio, by load."""
    lines = []
    for keep, points in _by_keep(benchmark, kind).items():
        waits = [point.figures.ttft_ms for point in points]
        lines.append(
            LoadLine(
                f"keep {keep:g}",
                [point.value for point in points],
                [point.figures.requests_per_second for point in points],
                [wait.p50 if wait else np.nan for wait in waits],
                [wait.p95 if wait else np.nan for wait in waits],
            )
        )
    return load_panels(lines, _ACROSS[kind], narrow)


def waits_chart(kind: Kind, benchmark: Benchmark, narrow: bool = False) -> str:
    """Which share of the requests waits how long, under the heaviest load of a kind."""
    points = heaviest(benchmark, kind)
    figure, (first, whole) = side_by_side(2, WHOLE, narrow)
    for number, point in enumerate(points):
        answered = [sent for sent in point.requests if not sent.error]
        _draw_shares(first, [sent.ttft_ms for sent in answered if sent.ttft_ms is not None], number, f"keep {point.keep:g}")
        _draw_shares(whole, [sent.end_to_end_ms for sent in answered], number, f"keep {point.keep:g}")
    for axes, title in ((first, "First token"), (whole, "Whole answer")):
        _dress_shares(axes, f"{title}, {points[0].load}", "milliseconds", "requests within it", len(points))
    return svg(figure)


def gaps_chart(kind: Kind, benchmark: Benchmark, narrow: bool = False) -> str:
    """Gaps between chunks of text under the heaviest load, and the longest of each request over its median."""
    points = heaviest(benchmark, kind)
    figure, (gaps, ratios) = side_by_side(2, WHOLE, narrow)
    for number, point in enumerate(points):
        answered = [sent for sent in point.requests if not sent.error]
        _draw_shares(gaps, list(chain.from_iterable(sent.gaps_ms for sent in answered)), number, f"keep {point.keep:g}")
        _draw_shares(ratios, [sent.gap_ratio for sent in answered if sent.gap_ratio], number, f"keep {point.keep:g}")
    _dress_shares(gaps, f"Gaps, {points[0].load}", "milliseconds", "gaps within it", len(points))
    _dress_shares(ratios, "Longest over median gap", "times", "requests within it", len(points))
    return svg(figure)


def charts_of(benchmark: Benchmark) -> dict[str, partial[str]]:
    """What draws each chart of the page: of each kind of load that was measured."""
    kinds = dict.fromkeys(point.kind for point in benchmark.points)
    draws = {"load": load_chart, "waits": waits_chart, "gaps": gaps_chart}
    return {f"{kind}_{name}": partial(draw, kind) for kind in kinds for name, draw in draws.items()}


def heaviest(benchmark: Benchmark, kind: Kind) -> list[LoadPoint]:
    """The points of the heaviest load of a kind, one for each keep ratio."""
    return [points[-1] for points in _by_keep(benchmark, kind).values()]


def _by_keep(benchmark: Benchmark, kind: Kind) -> dict[float, list[LoadPoint]]:
    found: dict[float, list[LoadPoint]] = {}
    for point in benchmark.points:
        if point.kind == kind:
            found.setdefault(point.keep, []).append(point)
    return found


def _draw_shares(axes: Axes, values: Sequence[float], number: int, name: str) -> None:
    """The empirical distribution of some values; without any, its name alone."""
    shares = np.linspace(0, 1, min(_MOST_STEPS, max(2, len(values)))) if values else np.empty(0)
    axes.plot(np.quantile(values or [0], shares), shares, color=_colour(number), linewidth=2.4, label=name)


def _colour(number: int) -> str:
    """That of `load_panels`."""
    return (COLOURS[1], COLOURS[0], *COLOURS[2:])[number % len(COLOURS)]


def _dress_shares(axes: Axes, title: str, across: str, up: str, names: int) -> None:
    axes.set_xlim(0, room(axes.dataLim.x1))
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share:.0f} %" for share in np.linspace(0, 100, 6)])
    frame(axes, title, across, up)
    if names <= _FEW:
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    else:
        legend(axes, 3)

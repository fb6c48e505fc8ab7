"""Charts of a report: as PNG, and as SVG to stand in a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines.system.packages import needed_package

with needed_package("it draws the charts", "report"):
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

COLOURS = (
    *("#d62839", "#1d5fbf", "#2a9d5c", "#8e44ad", "#e07a1f", "#0e9aa7"),
    *("#c2185b", "#7a5c3e", "#8a9a1b", "#5d6d7e", "#2b2d42", "#b8860b"),
)
_MARKERS = "osD^vPXph<d>"
INK, MUTED, RULE = "#22262b", "#666c73", "#e4e6e9"
_LABEL_POINTS = 10.5
_LABEL_GAP = 1.35
"""Distance of two labels, in heights of their font."""
_LEADER = {"arrowstyle": "-", "linewidth": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 6, "relpos": (0, 0.5)}
_TICK_SHARE = 0.08
"""Least distance of two tick labels, as a share of the axis."""
_INCHES = (10.0, 5.6)
DPI = 160
WHOLE, HALF, PHONE = (10.0, 4.2), (5.6, 4.0), (4.5, 4.2)
"""Inches of a chart that takes the page's width, of one that takes half of it, and of one on a narrow screen."""
_LEGEND_POINTS = 17
"""Height of a row of a legend above the axes."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: what stands beside its end.
        keeps: share of kept visual tokens of each point, descending.
        values: share of right answers of each point.
        low: lower end of each value's interval.
        high: upper end of each value's interval.
    """

    name: str
    keeps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class LoadLine:
    """What a server does under more and more load.

    Attributes:
        name: what the legend calls it.
        loads: clients, or requests sent a second.
        rates: requests answered a second at each.
        half: milliseconds to the first token that half of the requests stay within.
        slow: the same of 95 %.
    """

    name: str
    loads: Sequence[float]
    rates: Sequence[float]
    half: Sequence[float]
    slow: Sequence[float]


def accuracy_chart(curves: Sequence[Curve], whole: float, ticks: Mapping[float, str], note: str = "") -> bytes:
    """A PNG of accuracy against the share of kept visual tokens: fewer tokens to the right, one line a curve.

    Args:
        curves: the first one is drawn in front, and thicker than the others.
        whole: share of right answers with all tokens, a dashed line.
        ticks: labels of the x axis by keep ratio, at least two.
        note: small text below the title.
    """
    figure = Figure(_INCHES, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2))
    axes = figure.subplots()
    for index, curve in reversed(list(enumerate(curves))):
        _draw(axes, curve, COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)], front=index == 0)
    axes.axhline(whole, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2, zorder=2)
    _dress(axes, ticks, note)
    _label(axes, curves, whole, min(ticks), min(ticks) * (min(ticks) / max(ticks)) ** 0.045)
    return _png(figure)


def learning_curve(losses: Sequence[tuple[float, float]], best: int) -> bytes:
    """A PNG of the training and validation loss (KL divergence in nats) of each epoch.

    Args:
        losses: training and validation loss of each epoch.
        best: the epoch that was kept, counted from 0.
    """
    figure = Figure((8.0, 4.6), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2))
    axes = figure.subplots()
    epochs = np.arange(1, len(losses) + 1)
    for name, values, colour in zip(("training", "validation"), np.transpose(losses), COLOURS[1::-1], strict=True):
        axes.plot(epochs, values, color=colour, linewidth=2.4, label=name, marker="o" if len(losses) == 1 else "")
    kept = losses[best][1]
    axes.plot(best + 1, kept, marker="o", color=COLOURS[0], markersize=9, markeredgecolor="white")
    axes.vlines(best + 1, 0, kept, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
    axes.set_xlim(0.5, len(losses) + 0.5)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(facecolor="white", edgecolor="white", framealpha=1, fontsize=11, labelcolor="linecolor", loc="upper right")
    note = f"kept: epoch {best + 1} of {len(losses)}, validation {kept:.3f} nats"
    frame(axes, "Learning curve", "epoch", "KL divergence to the labels, nats", note)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _draw(axes: Axes, curve: Curve, colour: str, marker: str, front: bool) -> None:
    axes.fill_between(curve.keeps, curve.low, curve.high, color=colour, alpha=0.2 if front else 0.07, linewidth=0)
    axes.plot(
        curve.keeps,
        curve.values,
        color=colour,
        marker=marker,
        linewidth=3.2 if front else 1.6,
        markersize=8 if front else 5.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=4 if front else 3,
    )


def _dress(axes: Axes, ticks: Mapping[float, str], note: str) -> None:
    """Scales, title, axes and grid."""
    axes.set_xscale("log", base=2)
    margin = (max(ticks) / min(ticks)) ** 0.02
    axes.set_xlim(max(ticks) * margin, min(ticks) / margin)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), labels=_readable(ticks))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    frame(axes, "Accuracy with fewer visual tokens", "visual tokens kept: share and mean number", "right answers", note)


def frame(axes: Axes, title: str, across: str, up: str, note: str = "", pad: int = 28) -> None:
    """What every chart has: title `pad` points above the axes, note below it, names of the axes, a quiet grid."""
    axes.set_xlabel(across, color=MUTED, fontsize=11, labelpad=8)
    axes.set_ylabel(up, color=MUTED, fontsize=11)
    axes.tick_params(colors=INK, length=0, labelsize=11)
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.set_title(title, loc="left", color=INK, fontsize=16, fontweight="bold", pad=pad)
    axes.annotate(
        note, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points", va="bottom", color=MUTED, fontsize=10.5
    )


def _readable(ticks: Mapping[float, str]) -> list[str]:
    """The labels; those of the ends always, one between them only where it does not run into another."""
    room = _TICK_SHARE * np.log2(max(ticks) / min(ticks))
    shown = [max(ticks), min(ticks)]
    for keep in sorted(ticks):
        if np.abs(np.log2(np.divide(shown, keep))).min() >= room:
            shown.append(keep)
    return [text if keep in shown else "" for keep, text in ticks.items()]


def _label(axes: Axes, curves: Sequence[Curve], whole: float, edge: float, beside: float) -> None:
    """Names the lines that end at `edge`, moved apart where the names would overlap; the names stand at `beside`."""
    ends = [curve.values[-1] for curve in curves] + [whole]
    names = [curve.name for curve in curves] + ["all tokens"]
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(curves))] + [MUTED]
    low, high = axes.get_ylim()
    axes_points = 0.72 * 72 * _INCHES[1]  # the axes take about this share of the height; 72 points are an inch
    places = spread(ends, (high - low) * _LABEL_GAP * _LABEL_POINTS / axes_points)
    for index, (end, place) in enumerate(zip(ends, places, strict=True)):
        axes.annotate(
            f"{names[index]}  {100 * end:.1f} %",
            (edge, end),
            (beside, place),
            va="center",
            color=colours[index],
            fontsize=_LABEL_POINTS,
            fontweight="bold" if index == 0 else "normal",
            annotation_clip=False,
            arrowprops=_LEADER | {"color": colours[index]},
        )


def spread(values: Sequence[float], gap: float) -> np.ndarray:
    """The values moved apart, in the same order, until neighbours are at least `gap` apart.

    The sum of the squared moves is the least possible: isotonic regression by pooling adjacent violators, after each
    rank's share of the gaps is taken off.
    """
    order = np.argsort(values, kind="stable")
    shift = gap * np.arange(len(order))
    pools: list[list[float]] = []
    for value in np.asarray(values, float)[order] - shift:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    places = np.empty(len(order))
    places[order] = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) + shift
    return places


def load_panels(lines: Sequence[LoadLine], across: str, narrow: bool) -> str:
    """Requests a second, and time to first token of the middle and of the slow requests, as SVG."""
    figure, (rate, wait) = side_by_side(2, WHOLE, narrow)
    for line, colour in zip(lines, (COLOURS[1], COLOURS[0], *COLOURS[2:]), strict=False):
        rate.plot(line.loads, line.rates, color=colour, marker="o", label=line.name)
        wait.plot(line.loads, line.half, color=colour, marker="o", label=f"{line.name}, half of them")
        wait.plot(line.loads, line.slow, color=colour, marker="^", linestyle=":", label=f"{line.name}, 95 %")
    for axes, title, up in ((rate, "Throughput", "requests a second"), (wait, "Time to first token", "milliseconds")):
        axes.set_ylim(0, room(axes.dataLim.y1))
        axes.set_xticks(sorted({load for line in lines for load in line.loads}))
        frame(axes, title, across, up)
        axes.legend(frameon=False, fontsize=9)
    return svg(figure)


def room(most: float) -> float:
    """The end of an axis from 0 that shows a largest value; 1 where nothing was drawn."""
    return 1.08 * most if 0 < most < np.inf else 1.0


def side_by_side(count: int, inches: tuple[float, float], narrow: bool) -> tuple[Figure, list[Axes]]:
    """Charts beside each other, on a narrow screen one below the other."""
    figure = Figure((PHONE[0], 0.85 * PHONE[1] * count) if narrow else inches)
    figure.set_layout_engine("constrained", h_pad=0.12 if narrow else 0.04)  # inches
    shape = (count, 1) if narrow else (1, count)
    return figure, list(np.ravel(figure.subplots(*shape)))


def above(rows: int) -> int:
    """Points between the axes and their title, for a legend of so many rows."""
    return 11 + _LEGEND_POINTS * rows


def legend(axes: Axes, columns: int) -> None:
    """Between axes and title."""
    axes.legend(
        ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, handlelength=1, columnspacing=1.4, fontsize=10
    )


def svg(figure: Figure) -> str:
    """The drawing alone, without the head of a file."""
    image = io.StringIO()
    figure.savefig(image, format="svg", metadata={"Date": None})
    drawing = image.getvalue()
    return drawing[drawing.index("<svg") :]

"""The chart of the families: what stays right against kept visual tokens."""

from __future__ import annotations

from pathlib import Path

from benchmarks.retention.asking import DEFAULT, KEEPS, KINDS
from benchmarks.retention.tables import Found, row_of

LINES = {
    DEFAULT: "#d62839",
    "learned": "#f0a03c",
    "attention": "#1d5fbf",
    "cdpruner": "#2a9d5c",
    "cdpruner-openvino-frames": "#8e44ad",
    "random": "#8a8f98",
}
"""Colours by selector."""


def draw(found: Found, path: Path) -> None:
    """Small multiples: a row for each kind and a column for each checkpoint."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(case.name for case, _ in found))
    figure = Figure(figsize=(3.6 * len(names), 5.8), layout="constrained")
    grid = figure.subplots(len(KINDS), len(names), sharex=True, sharey=True, squeeze=False)
    for (case, _), results in found.items():
        axes = grid[KINDS.index(case.kind)][names.index(case.name)]
        for name, colour in LINES.items():
            stays = [row_of(results.overall, name, keep).stay for keep in KEEPS]
            values, low, high = ([1.0, *ends] for ends in zip(*((s.value, s.low, s.high) for s in stays if s), strict=True))
            axes.fill_between((1.0, *KEEPS), low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot((1.0, *KEEPS), values, "o-", color=colour, label=name, markersize=4)
        axes.set_title(f"{case.name}, {case.kind}", fontsize=10)
        axes.grid(color="#e4e6e9")
        axes.spines[["top", "right"]].set_visible(False)
    first = grid[0][0]
    first.set_xlim(1.04, 0.2)
    first.set_xticks([1.0, 0.5, 0.25], ["100 %", "50 %", "25 %"])
    first.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.supxlabel("visual tokens kept", fontsize=10)
    figure.supylabel("right answers that stay right", fontsize=10)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=140)

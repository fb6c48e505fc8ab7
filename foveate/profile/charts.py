"""The charts of a profile, as SVG to stand in a page."""

from __future__ import annotations

import numpy as np

from foveate.charts import (
    COLOURS,
    HALF,
    INK,
    MUTED,
    PHONE,
    RULE,
    WHOLE,
    Axes,
    Figure,
    LoadLine,
    above,
    frame,
    legend,
    load_panels,
    side_by_side,
    svg,
)
from foveate.profile.results import KeepRun, Profile, percent

_MIB = 2**20


def stages_chart(profile: Profile, narrow: bool = False) -> str:
    """Time to first token by keep ratio, its stages one after the other, and the share of the tower."""
    runs = profile.runs[::-1]
    figure = Figure(PHONE if narrow else WHOLE, layout="constrained")
    axes = figure.subplots()
    places, starts, legend_columns = np.arange(len(runs)), np.zeros(len(runs)), 3 if narrow else len(profile.stages)
    for stage in profile.stages:
        widths = np.array([run.stage(stage.key) for run in runs])
        axes.barh(places, widths, left=starts, height=0.62, color=stage.colour, label=stage.name)
        starts += widths
    for place, end, run in zip(places, starts, runs, strict=True):
        told = (f"{_ms(end)} ms", f"tower {percent(run.tower_share)}")
        axes.annotate(
            ("\n" if narrow else ", ").join(told), (end, place), (6, 0), textcoords="offset points", va="center", color=INK
        )
    axes.set_yticks(places, [f"{_kind(run)} {run.keep:g}\n{run.kept_tokens} tokens" for run in runs])
    axes.set_xlim(0, (1.4 if narrow else 1.25) * starts.max())
    frame(axes, "Time to first token", "milliseconds, medians", "", pad=above(-(-len(profile.stages) // legend_columns)))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=1)
    legend(axes, legend_columns)
    return svg(figure)


def _kind(run: KeepRun) -> str:
    """What is a share: of the visual tokens that stay, or that are computed and stay."""
    return "encode" if run.glance_tokens else "keep"


def speedup_chart(profile: Profile, narrow: bool = False) -> str:
    """Speed-up of everything that pruning can shorten, beside the ideal, and what is retained, over the same keep ratios."""
    figure = Figure(PHONE if narrow else WHOLE, layout="constrained")
    axes = figure.subplots()
    keeps = [run.keep for run in profile.keeps]
    ideal = [profile.ideal_speedup(run) for run in profile.keeps]
    axes.plot(keeps, ideal, color=MUTED, linestyle=(0, (5, 3)), label="ideal: as the tokens, scoring free")
    lines = {
        "score to prefill": (COLOURS[1], [profile.speedup(run) for run in profile.keeps]),
        "time to first token, with vision": (
            COLOURS[4],
            [profile.whole.ttft.median / run.ttft.median for run in profile.keeps],
        ),
    }
    for name, (colour, values) in lines.items():
        axes.plot(keeps, values, color=colour, marker="o", linewidth=2.6, label=name)
        axes.annotate(
            f"{values[-1]:.2g}x", (keeps[-1], values[-1]), (8, 0), textcoords="offset points", va="center", color=colour
        )
    axes.set_xlim(1.03, min(keeps) - (0.2 if narrow else 0.09))
    axes.set_xticks(np.arange(1, 0, -0.2))
    axes.set_ylim(0, 1.08 * max(ideal))
    frame(axes, "Speed-up", "share of visual tokens kept", "against keep 1", pad=above(3 if narrow else 1))
    if profile.retention:
        _draw_retention(axes.twinx(), profile)
    legend(axes, 1 if narrow else 3)
    return svg(figure)


def sizes_chart(profile: Profile, narrow: bool = False) -> str:
    """Time to first token with the whole tower and with a part of it, over sizes of the image."""
    figure = Figure(PHONE if narrow else WHOLE, layout="constrained")
    axes = figure.subplots()
    parts = [(size, size.part) for size in profile.sizes if size.part is not None]
    keep = profile.sizes[0].whole.keep
    tokens = [size.visual_tokens for size in profile.sizes]
    whole = [size.whole.ttft.median for size in profile.sizes]
    axes.plot(tokens, whole, color=COLOURS[1], marker="o", linewidth=2.6, label=f"whole tower, keep {keep:g}")
    places, times = [size.visual_tokens for size, _ in parts], [part.ttft.median for _, part in parts]
    axes.plot(places, times, color=COLOURS[4], marker="o", linewidth=2.6, label=f"encode {keep:g}, keep {keep:g}")
    for (size, _), place, time in zip(parts, places, times, strict=True):
        axes.annotate(
            f"{size.part_speedup:.2g}x", (place, time), (0, -15), textcoords="offset points", ha="center", color=COLOURS[4]
        )
    axes.set_xlim(0, 1.05 * max(tokens))
    axes.set_ylim(min(0, -0.06 * max(whole)), 1.08 * max(whole))
    frame(axes, "A part of the tower", "visual tokens of the image", "first token, milliseconds", pad=above(2 if narrow else 1))
    legend(axes, 1 if narrow else 2)
    return svg(figure)


def _draw_retention(axes: Axes, profile: Profile) -> None:
    """On a second axis, from 0 to 100 %."""
    points = sorted([(1.0, 1.0, 1.0, 1.0), *((point.keep, *point.share) for point in profile.retention)], reverse=True)
    keeps, stay, low, high = zip(*points, strict=True)
    axes.fill_between(keeps, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(keeps, stay, color=COLOURS[0], marker="s", linewidth=2.2)
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{share:.0f} %" for share in np.linspace(0, 100, 6)], color=COLOURS[0])
    axes.set_ylabel("right answers that stay", color=COLOURS[0])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def decode_chart(profile: Profile, narrow: bool = False) -> str:
    """Milliseconds between tokens: middle half, median, and what lies within the whiskers."""
    runs = [run for run in profile.keeps if run.decode_ms]
    figure = Figure(PHONE if narrow else HALF, layout="constrained")
    axes = figure.subplots()
    axes.boxplot(
        [run.decode_ms for run in runs],
        tick_labels=[f"{run.keep:g}" for run in runs],
        patch_artist=True,
        widths=0.55,
        showfliers=False,
        boxprops={"facecolor": "#cfe0f7", "edgecolor": COLOURS[1]},
        medianprops={"color": COLOURS[0], "linewidth": 2},
        whiskerprops={"color": COLOURS[1]},
        capprops={"color": COLOURS[1]},
    )
    axes.set_ylim(bottom=0)
    frame(axes, "Inter-token latency", "keep", "milliseconds")
    return svg(figure)


def memory_chart(profile: Profile, narrow: bool = False) -> str:
    """Peak resident memory and bytes of the KV cache by keep ratio."""
    panels = [("KV cache", COLOURS[1], [run.kv_bytes / _MIB for run in profile.keeps])]
    peaks = [run.peak_bytes for run in profile.keeps]
    if all(peaks):
        panels.insert(0, ("peak resident memory", COLOURS[3], [(peak or 0) / _MIB for peak in peaks]))
    figure, places_of_panels = side_by_side(len(panels), HALF, narrow)
    for axes, (title, colour, values) in zip(places_of_panels, panels, strict=True):
        places = np.arange(len(values))
        axes.bar(places, values, color=colour, width=0.62)
        for place, value in zip(places, values, strict=True):
            axes.annotate(_ms(value), (place, value), (0, 3), textcoords="offset points", ha="center", fontsize=9, color=INK)
        axes.set_xticks(places, [f"{run.keep:g}" for run in profile.keeps])
        frame(axes, "", "keep", "MiB")
        axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=12)
    return svg(figure)


def load_chart(profile: Profile, narrow: bool = False) -> str:
    """Requests a second, and time to first token of the middle and of the slow requests, by clients."""
    lines = []
    for keep in dict.fromkeys(run.keep for run in profile.load):
        runs = [run for run in profile.load if run.keep == keep]
        rates = [run.requests_per_second for run in runs]
        half, slow = ([run.percentile(share) for run in runs] for share in (0.5, 0.95))
        lines.append(LoadLine(f"keep {keep:g}", [run.clients for run in runs], rates, half, slow))
    return load_panels(lines, "clients at once", narrow)


def _ms(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

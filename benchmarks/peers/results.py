"""What was measured: kept in a file as it comes, and shown as tables and a chart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import table as markdown
from benchmarks.peers.peers import PEERS
from foveate.engines import replace_file

MARK = "<!-- benchmarks/peers writes what follows -->"
"""On docs/benchmarks.md, above the table."""
Record = dict[str, Any]
"""`peer`, `precision`, `round`, `date` and what `worker.work` prints."""


class Results:
    """The records of a file, which is rewritten whole with each new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = json.loads(path.read_text()) if path.exists() else []

    def has(self, peer: str, precision: str, number: int) -> bool:
        return (peer, precision, number) in {(r["peer"], r["precision"], r["round"]) for r in self.records}

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps(self.records, indent=1).encode())


@dataclass(frozen=True)
class Line:
    """Medians over the rounds of one peer, precision and keep ratio.

    Attributes:
        ttft_range_s: smallest and largest; None as `ttft_s`, where the peer has no vision.
    """

    peer: str
    precision: str
    keep: float
    rounds: int
    prompt_tokens: int
    vision_s: float | None
    prefill_s: float
    ttft_s: float | None
    ttft_range_s: tuple[float, float] | None
    decode_tokens_per_s: float
    peak_rss_bytes: float

    @property
    def name(self) -> str:
        pruned = "" if self.keep == 1 else f", keep {self.keep:g}"
        return f"{PEERS[self.peer].title} {self.precision}{pruned}"


def lines(records: Sequence[Record]) -> Iterator[Line]:
    """In the order of `PEERS`."""
    for name, peer in PEERS.items():
        for precision in peer.precisions:
            chosen = [record for record in records if (record["peer"], record["precision"]) == (name, precision)]
            for index, keep in enumerate(peer.keeps if chosen else ()):
                yield _line(name, precision, keep, chosen, [record["runs"][index] for record in chosen])


def _line(peer: str, precision: str, keep: float, records: Sequence[Record], runs: Sequence[Record]) -> Line:
    ttfts = [run["ttft_s"] for run in runs if run["ttft_s"] is not None]
    return Line(
        peer,
        precision,
        keep,
        rounds=len(runs),
        prompt_tokens=runs[0]["prompt_tokens"],
        vision_s=median(run["vision_s"] for run in runs) if ttfts else None,
        prefill_s=median(run["prefill_s"] for run in runs),
        ttft_s=median(ttfts) if ttfts else None,
        ttft_range_s=(min(ttfts), max(ttfts)) if ttfts else None,
        decode_tokens_per_s=median(run["decode_tokens_per_s"] for run in runs),
        peak_rss_bytes=median(record["peak_rss_bytes"] for record in records),
    )


def table(measured: Sequence[Line]) -> Iterator[str]:
    """A row for each line."""
    return markdown(
        measured,
        {
            "tool": lambda line: PEERS[line.peer].title,
            "precision": lambda line: line.precision,
            "keep": lambda line: f"{line.keep:g}",
            "prompt tokens": lambda line: str(line.prompt_tokens),
            "vision s": lambda line: _seconds(line.vision_s),
            "prefill s": lambda line: _seconds(line.prefill_s),
            "TTFT s": lambda line: _seconds(line.ttft_s) + _range(line),
            "decode tokens/s": lambda line: f"{line.decode_tokens_per_s:.1f}",
            "peak RSS GiB": lambda line: f"{line.peak_rss_bytes / 2**30:.1f}",
        },
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(line: Line) -> str:
    ends = line.ttft_range_s if line.ttft_range_s and line.rounds > 1 else ()
    return f" ({' - '.join(map(_seconds, ends))})" if ends else ""


def settings_table(records: Sequence[Record]) -> Iterator[str]:
    """Versions of each tool, and what it says of how it runs; of the last process that ran."""

    def listed(facts: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in facts.items())

    return markdown(
        {record["peer"]: record for record in records}.values(),
        {
            "tool": lambda record: PEERS[record["peer"]].title,
            "versions": lambda record: listed(record["versions"]),
            "settings": lambda record: listed(record["settings"]) or "-",
        },
    )


def draw(measured: Sequence[Line], path: Path) -> None:
    """Bars: time to first token in its parts, and decoding, a row for each line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.34 * len(measured)), layout="constrained")
    first, second = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = [line.name for line in measured]
    visions = [line.vision_s or 0.0 for line in measured]
    first.barh(rows, visions, color="#1d5fbf", label="vision")
    first.barh(rows, [line.prefill_s for line in measured], left=visions, color="#e07a1f", label="prefill")
    for line, vision in zip(measured, visions, strict=True):
        first.annotate(f" {vision + line.prefill_s:.1f}", (vision + line.prefill_s, line.name), va="center", fontsize=9)
    second.barh(rows, [line.decode_tokens_per_s for line in measured], color="#2a9d5c")
    first.set_xlabel("seconds to the first token")
    second.set_xlabel("decoded tokens per second")
    first.invert_yaxis()
    first.margins(x=0.08, y=0.01)
    for axes in (first, second):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e4e6e9")
        axes.set_axisbelow(True)
    first.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=140)

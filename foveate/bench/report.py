"""A load test as a page, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from foveate.bench.results import Benchmark, Figures, LoadPoint, Percentiles
from foveate.report import Drawing, Table, Tile, make_json, render_page, write_files

_MIB = 2**20
_SHARES = ("mean", "p50", "p90", "p95", "p99", "max")
_TIMES = ("ttft_ms", "itl_ms", "end_to_end_ms", "gap_ratio")


def write_reports(
    benchmark: Benchmark, page: Path | None = None, json_file: Path | None = None, csv_file: Path | None = None
) -> None:
    """Writes what was asked for, each file whole or not at all.

    Raises:
        MachineError: a file can't be written.
        MissingPackageError: matplotlib is not installed.
    """
    write_files(benchmark, {page: make_page, json_file: make_json, csv_file: make_csv})


def make_csv(benchmark: Benchmark) -> bytes:
    """A line for each point: milliseconds, bytes, and what a second had."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = (
        *("requests", "answered", "requests_per_second", "output_tokens_per_second", "tokens_by"),
        *("good_share", "goodput_per_second", "visual_tokens", "kept_tokens"),
    )
    spread = [f"{name}_{share}" for name in (*_TIMES, "lag_ms") for share in _SHARES]
    rest = ("errors", "resident_bytes", "private_bytes", "generator_cpu_share", "generator_token_us")
    writer.writerow(("kind", "value", "keep", "seconds", *own, *spread, *rest))
    for point in benchmark.points:
        figures, memory = point.figures, point.memory
        values = [getattr(figures, name) for name in own]
        for name in (*_TIMES, "lag_ms"):
            found: Percentiles | None = getattr(figures, name)
            values += [getattr(found, share) if found else None for share in _SHARES]
        values += [_errors(figures), *((memory.resident_bytes, memory.private_bytes) if memory else (None, None))]
        values += [point.generator_cpu_share, point.generator_token_us]
        writer.writerow([_cell(value) for value in (point.kind, point.value, point.keep, point.seconds, *values)])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def make_page(benchmark: Benchmark) -> bytes:
    """One HTML file that needs no other."""
    from foveate.bench.charts import charts_of

    return render_page(
        "foveate.bench",
        list(_tiles(benchmark)),
        list(_tables(benchmark)),
        _facts(benchmark),
        {name: Drawing.of(draw, benchmark) for name, draw in charts_of(benchmark).items()},
        setting=benchmark.setting,
        remarks=remarks(benchmark),
    )


def remarks(benchmark: Benchmark) -> list[str]:
    """What the figures need to be read with: what was left out, what failed, and whether the generator kept up."""
    found = list(benchmark.setting.remarks)
    found += [f"{kind}: {message}" for kind, message in benchmark.setting.error_examples.items()]
    late = [point for point in benchmark.points if point.figures.lag_ms and point.figures.lag_ms.p99 > _LATE_MS]
    if late:
        worst = max(point.figures.lag_ms.p99 for point in late if point.figures.lag_ms)
        loads = ", ".join(dict.fromkeys(str(point.load) for point in late))
        found.append(f"The generator sent up to {worst:,.0f} ms late at {loads}: run it on a machine that is less busy.")
    return found


_LATE_MS = 20
"""At which a generator is itself what is measured."""


def _tiles(benchmark: Benchmark) -> Iterator[Tile]:
    best = max(benchmark.points, key=lambda point: point.figures.output_tokens_per_second)
    told = f"{best.load}, keep {best.keep:g}"
    yield Tile(f"{best.figures.output_tokens_per_second:,.1f}", f"output tokens a second at most: {told}")
    fastest = max(benchmark.points, key=lambda point: point.figures.requests_per_second)
    yield Tile(
        f"{fastest.figures.requests_per_second:,.2f}", f"requests a second at most: {fastest.load}, keep {fastest.keep:g}"
    )
    for point in (benchmark.points[0], best):
        if point.figures.ttft_ms:
            yield Tile(
                f"{point.figures.ttft_ms.p50:,.0f} ms",
                f"to the first token in half of the requests: {point.load}, keep {point.keep:g}",
            )
    failed = sum(point.figures.requests - point.figures.answered for point in benchmark.points)
    sent = sum(point.figures.requests for point in benchmark.points)
    yield Tile(f"{failed:,} of {sent:,}", "requests failed")


def _tables(benchmark: Benchmark) -> Iterator[Table]:
    points = benchmark.points
    yield Table("Throughput", *_made(points, _throughput), _limits(benchmark))
    notes = {
        "Time to first token": "Milliseconds from when a request was due.",
        "Between chunks of text": "Milliseconds. A server may send several tokens in a chunk.",
        "Whole answer": "Milliseconds from when a request was due to the end of its answer.",
        "Longest over median gap": "Of each request with at least three gaps.",
    }
    for (title, note), name in zip(notes.items(), _TIMES, strict=True):
        yield Table(title, *_made(points, partial(_spread, name)), note)
    yield Table("The generator and the server's memory", *_made(points, _machine), _MACHINE_NOTE)


_MACHINE_NOTE = (
    "CPU: of one core, that this generator took. Late: how much later than due it sent, 99 % of the requests. Resident: most "
    "memory of the server with its mapped files; private: its anonymous pages and what of them was swapped out."
)


def _made(
    points: Sequence[LoadPoint], cells: Callable[[LoadPoint], dict[str, str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Heads and rows."""
    columns = ("load", "keep", *cells(points[0]))
    return columns, tuple((str(point.load), f"{point.keep:g}", *cells(point).values()) for point in points)


def _throughput(point: LoadPoint) -> dict[str, str]:
    figures = point.figures
    return {
        "requests a second": f"{figures.requests_per_second:,.2f}",
        "tokens a second": f"{figures.output_tokens_per_second:,.1f}",
        "good a second": "-" if figures.goodput_per_second is None else f"{figures.goodput_per_second:,.2f}",
        "good": "-" if figures.good_share is None else f"{100 * figures.good_share:.1f} %",
        "kept of visual tokens": _kept(figures),
        "answered": f"{figures.answered:,} of {figures.requests:,}",
        "errors": _errors(figures) or "-",
        "seconds": f"{point.seconds:,.1f}",
    }


def _kept(figures: Figures) -> str:
    if figures.kept_tokens is None or figures.visual_tokens is None:
        return "-"
    return f"{figures.kept_tokens:,.0f} of {figures.visual_tokens:,.0f}"


def _errors(figures: Figures) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in figures.errors.items())


def _spread(name: str, point: LoadPoint) -> dict[str, str]:
    """Of one of the figures."""
    found: Percentiles | None = getattr(point.figures, name)
    digits = 2 if name in ("itl_ms", "gap_ratio") else 1
    heads = dict(zip(_SHARES, ("mean", "50 %", "90 %", "95 %", "99 %", "most"), strict=True))
    return {head: f"{getattr(found, share):,.{digits}f}" if found else "-" for share, head in heads.items()}


def _machine(point: LoadPoint) -> dict[str, str]:
    memory, lag, token_us = point.memory, point.figures.lag_ms, point.generator_token_us
    private = memory.private_bytes if memory else None
    return {
        "generator's CPU": f"{100 * point.generator_cpu_share:.1f} %",
        "a chunk": "-" if token_us is None else f"{token_us:,.0f} us",
        "late": f"{lag.p99:,.1f} ms" if lag else "-",
        "resident": f"{memory.resident_bytes / _MIB:,.0f} MiB" if memory else "-",
        "private": "-" if private is None else f"{private / _MIB:,.0f} MiB",
        "by": memory.source if memory else "-",
    }


def _limits(benchmark: Benchmark) -> str:
    setting = benchmark.setting
    limits = {"first token": setting.ttft_slo_ms, "mean gap": setting.itl_slo_ms}
    told = ", ".join(f"{name} within {limit:g} ms" for name, limit in limits.items() if limit is not None)
    return f"Good: {told}." if told else ""


def _facts(benchmark: Benchmark) -> dict[str, str]:
    setting = benchmark.setting
    length = f"{setting.requests} requests" if setting.seconds is None else f"{setting.seconds:g} s of new requests"
    counted = sorted({point.figures.tokens_by for point in benchmark.points if point.figures.tokens_by})
    return {
        "server": f"{setting.server}, model {setting.model}",
        "load": f"{length} a point and round, rounds that take turns: {setting.rounds}, requests before that do not count: "
        f"{setting.warm_up}. Closed loop: clients with one request after the other. Open loop: Poisson arrivals.",
        "questions": f"{setting.questions}, seed {setting.seed}",
        "answers": f"at most {setting.max_tokens} tokens, greedy"
        + (", asked to go on past their end" if setting.ignore_eos else ""),
        "vision tower": "computes all visual tokens"
        if setting.encode is None
        else f"encode {setting.encode}, as foveate's servers do",
        "tokens counted by": ", ".join(counted) or "nothing was answered",
        "generator": f"foveate {setting.foveate_version}, {setting.cpus} CPUs",
        "date": setting.date,
    }

"""The report: tables as text, JSON, Markdown and a chart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from foveate.engines import replace_file
from foveate.evaluate.folder import REPORTS, Run, writing
from foveate.evaluate.results import Results, Row
from foveate.evaluate.statistics import Estimate, wilson
from foveate.runtime.encoding import Encode


@dataclass(frozen=True)
class Table:
    """A table of the report, as text.

    Attributes:
        title: what it shows.
        columns: their heads; the first two are the keep ratio, behind what the tower may compute where that was asked, and the
            selector.
        rows: as many cells each as there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(results: Results) -> list[Table]:
    """The report's tables: every question, and where there are several types of question two by type."""
    if len(results.types) == 1:
        return [_overall_table(results)]
    accuracy = _types_table(results, "Accuracy by type of question", lambda row: row.accuracy)
    return [_overall_table(results), accuracy, _types_table(results, "Stay right by type of question", lambda row: row.stay)]


def _overall_table(results: Results) -> Table:
    tower = ("tower %", "seen whole") if results.encodes else ()
    columns = (
        _budget_head(results),
        "selector",
        *tower,
        "tokens",
        "right",
        "accuracy %",
        "stay %",
        "retained %",
        f"points against {results.selectors[0]}",
    )
    rows = tuple(
        (
            _budget(results, row),
            row.selector,
            *((f"{100 * row.tower:.1f}", str(row.seen_whole) if row.encode else "-") if results.encodes else ()),
            f"{row.kept_tokens:.1f}",
            f"{row.right}/{row.questions}",
            _percent(row.accuracy),
            _percent(row.stay),
            _percent(row.retained),
            _points(row.difference_points),
        )
        for row in (results.overall.whole, *results.overall.rows)
    )
    return Table(f"{results.questions:,} questions, in brackets 95 % intervals", columns, rows)


def _budget_head(results: Results) -> str:
    return "encode : keep" if results.encodes else "keep"


def _budget(results: Results, row: Row) -> str:
    return f"{_share(row.encode)} : {row.keep:g}" if results.encodes else f"{row.keep:g}"


def _share(encode: Encode | None) -> str:
    return "all" if encode is None else f"{encode:g}" if isinstance(encode, float) else encode


def _types_table(results: Results, title: str, figure: Callable[[Row], Estimate | None]) -> Table:
    columns = tuple(f"{group.type or 'no type'} ({group.whole.questions:,})" for group in results.types)
    found = [{row.key: figure(row) for row in (group.whole, *group.rows)} for group in results.types]
    rows = []
    for row in (results.overall.whole, *results.overall.rows):
        estimates = [of_type.get(row.key) for of_type in found]
        cells = ("-" if estimate is None else f"{100 * estimate.value:.1f}" for estimate in estimates)
        rows.append((_budget(results, row), row.selector, *cells))
    return Table(f"{title}, %; in brackets how many", (_budget_head(results), "selector", *columns), tuple(rows))


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _points(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def remark(results: Results) -> str:
    """What the tables can't say: questions that the oracle was not asked, selectors that were not asked with `encode`, and why
    the tower saw everything; empty where there is nothing of it."""
    return " ".join([*_unlabelled(results), *_not_early(results), *_seen_whole(results)])


def _unlabelled(results: Results) -> Iterator[str]:
    if results.unlabelled:
        yield (
            f"{results.unlabelled:,} of {results.questions:,} questions have no label and are left out of the oracle's rows: "
            "its accuracy is on the others only."
        )


def _not_early(results: Results) -> Iterator[str]:
    asked = {row.selector for row in results.overall.rows if row.encode is not None}
    left_out = [name for name in results.selectors if name not in asked]
    if results.encodes and left_out:
        yield f"Without rows with encode, where the choice comes before the tower: {', '.join(left_out)}."


def _seen_whole(results: Results) -> Iterator[str]:
    alike: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for encode, reasons in results.seen_whole.items():
        alike.setdefault(tuple(reasons.items()), []).append(encode)
    for counts, encodes in alike.items():
        number = f"{sum(count for _, count in counts):,} of {results.questions:,}"
        told = ", ".join(f"{reason} ({count:,})" for reason, count in counts)
        yield f"With encode {' and '.join(encodes)} the tower saw everything for {number} questions: {told}."


def write_report(results: Results, run: Run, bundle_name: str, output: Path) -> None:
    """Writes `report.json`, `report.md` and `accuracy.png`.

    Raises:
        MachineError: `output` can't be written.
        MissingPackageError: matplotlib is missing.
    """
    contents = _json(results, run), _markdown(results, run, bundle_name).encode(), _chart(results)
    with writing(output):
        for name, content in zip(REPORTS, contents, strict=True):
            replace_file(output / name, content)


def _json(results: Results, run: Run) -> bytes:
    report = {"foveate_version": version("foveate"), "run": run, "results": results}
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def _markdown(results: Results, run: Run, bundle_name: str) -> str:
    parts = [f"# Evaluation of {bundle_name}", "![accuracy against kept visual tokens](accuracy.png)"]
    for table in tables(results):
        columns = [" ".join(column.replace("|", r"\|").split()) for column in table.columns]  # a type is the user's text
        rule = ("---:", "---", *["---:"] * (len(columns) - 2))
        lines = [f"| {' | '.join(cells)} |" for cells in (columns, rule, *table.rows)]
        parts += [f"## {table.title}", "\n".join(lines)]
    parts += [remark(results)] if remark(results) else []
    parts.append(
        "Stay: of the answers right at keep 1 the share that is right here too. Retained: accuracy as a share of that at "
        "keep 1 on the same questions, a net ratio: an answer that becomes right makes up for one that becomes wrong, so it "
        "may be above 100. Intervals: Wilson score for accuracy and stay, Bonett and Price for retained, Newcombe for "
        "differences, the last two for paired proportions."
    )
    if results.encodes:
        parts.append(
            "Tower: visual tokens that the vision tower computed, those of the small picture among them, as a share of all. "
            "Seen whole: questions for which it saw everything all the same; they are in the row's figures."
        )
    parts.append(
        f"foveate {version('foveate')}, bundle {run.bundle_sha256[:12]}, questions {run.questions_sha256[:12]}, {run.backend}, "
        f"{results.seconds:.0f} s of asking."
    )
    return "\n\n".join(parts) + "\n"


def _chart(results: Results) -> bytes:
    """The rows of each selector as a line, which starts at keep 1 on the selector's own questions. Those behind a part of the
    tower are lines of their own, without that start."""
    from foveate.charts import Curve, accuracy_chart

    rows_of: dict[tuple[str, Encode | None], list[Row]] = {}
    for row in results.overall.rows:
        rows_of.setdefault((row.selector, row.encode), []).append(row)
    curves = []
    for (name, encode), rows in rows_of.items():
        points = [(row.keep, row.accuracy) for row in rows]
        if encode is None:
            points = [(1.0, wilson(rows[0].whole_right, rows[0].questions)), *points]
        values, low, high = zip(*((share.value, share.low, share.high) for _, share in points), strict=True)
        label = name if encode is None else f"{name}, encode {_share(encode)}"
        label += "" if rows[0].questions == results.questions else f" (n = {rows[0].questions:,})"
        curves.append(Curve(label, [keep for keep, _ in points], values, low, high))
    tokens = {row.keep: row.kept_tokens for row in (results.overall.whole, *reversed(results.overall.rows))}
    ticks = {keep: f"{100 * keep:.3g} %\n{tokens[keep]:.0f}" for keep in (1.0, *results.keeps)}
    note = f"{results.questions:,} questions; bands: 95 % Wilson score intervals"
    return accuracy_chart(curves, results.overall.whole.accuracy.value, ticks, note)

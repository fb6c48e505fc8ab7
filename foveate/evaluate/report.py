"""The report: tables as text, JSON, Markdown and a chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from foveate.engines import replace_file
from foveate.evaluate.folder import REPORTS, Run, writing
from foveate.evaluate.results import Results, Row
from foveate.evaluate.statistics import Estimate, wilson


@dataclass(frozen=True)
class Table:
    """A table of the report, as text.

    Attributes:
        title: what it shows.
        columns: their heads; the first two are the keep ratio and the selector.
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
    columns = (
        "keep",
        "selector",
        "tokens",
        "right",
        "accuracy %",
        "stay %",
        "retained %",
        f"points against {results.selectors[0]}",
    )
    rows = tuple(
        (
            f"{row.keep:g}",
            row.selector,
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


def _types_table(results: Results, title: str, figure: Callable[[Row], Estimate | None]) -> Table:
    columns = tuple(f"{group.type or 'no type'} ({group.whole.questions:,})" for group in results.types)
    found = [{(row.selector, row.keep): figure(row) for row in (group.whole, *group.rows)} for group in results.types]
    rows = []
    for row in (results.overall.whole, *results.overall.rows):
        estimates = [of_type.get((row.selector, row.keep)) for of_type in found]
        cells = ("-" if estimate is None else f"{100 * estimate.value:.1f}" for estimate in estimates)
        rows.append((f"{row.keep:g}", row.selector, *cells))
    return Table(f"{title}, %; in brackets how many", ("keep", "selector", *columns), tuple(rows))


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _points(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def remark(results: Results) -> str:
    """What the tables can't say: questions that the oracle was not asked; empty where there are none."""
    if not results.unlabelled:
        return ""
    return (
        f"{results.unlabelled:,} of {results.questions:,} questions have no label and are left out of the oracle's rows: "
        "its accuracy is on the others only."
    )


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
    parts += [remark(results)] if results.unlabelled else []
    parts.append(
        "Stay: of the answers right at keep 1 the share that is right here too. Retained: accuracy as a share of that at "
        "keep 1 on the same questions, a net ratio: an answer that becomes right makes up for one that becomes wrong, so it "
        "may be above 100. Intervals: Wilson score for accuracy and stay, Bonett and Price for retained, Newcombe for "
        "differences, the last two for paired proportions."
    )
    parts.append(
        f"foveate {version('foveate')}, bundle {run.bundle_sha256[:12]}, questions {run.questions_sha256[:12]}, {run.backend}, "
        f"{results.seconds:.0f} s of asking."
    )
    return "\n\n".join(parts) + "\n"


def _chart(results: Results) -> bytes:
    """The rows of each selector as a line, which starts at keep 1 on the selector's own questions."""
    from foveate.charts import Curve, accuracy_chart

    rows_of = {name: [row for row in results.overall.rows if row.selector == name] for name in results.selectors}
    curves = []
    for name, rows in rows_of.items():
        if rows:
            accuracies = [wilson(rows[0].whole_right, rows[0].questions), *(row.accuracy for row in rows)]
            values, low, high = zip(*((share.value, share.low, share.high) for share in accuracies), strict=True)
            label = name if rows[0].questions == results.questions else f"{name} (n = {rows[0].questions:,})"
            curves.append(Curve(label, (1.0, *results.keeps), values, low, high))
    tokens = {row.keep: row.kept_tokens for row in (results.overall.whole, *reversed(results.overall.rows))}
    ticks = {keep: f"{100 * keep:.3g} %\n{tokens[keep]:.0f}" for keep in (1.0, *results.keeps)}
    note = f"{results.questions:,} questions; bands: 95 % Wilson score intervals"
    return accuracy_chart(curves, results.overall.whole.accuracy.value, ticks, note)

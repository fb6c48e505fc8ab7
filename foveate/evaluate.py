"""How many answers stay right with fewer visual tokens: accuracy by selector and keep ratio, on a user's own questions.

`evaluate` asks in memory; `evaluate_bundle` keeps every answer in a folder, goes on after a kill, and writes the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import msgspec
import numpy as np

from foveate.engines import Bundle, RequestError, RetentionPoint, hash_file, replace_file
from foveate.engines.bundle import MANIFEST
from foveate.runtime import Budget, Pipeline, Policy, Request, Selector, load, open_selector
from foveate.runtime.select.scores import Oracle
from foveate.samples import QUESTIONS, Sample, read_samples

Labels = Callable[[int, Sample], np.ndarray | None]
"""Relevance `[num_visual_tokens]` float32 of sample number i, counted from 0; None where it has no label."""
Progress = Callable[[int, int], None]
"""Gets the number of finished samples, and of all."""

ANSWERS = "answers.jsonl"
REPORTS = ("report.json", "report.md", "accuracy.png")
WHOLE = ("all", 1.0)
"""Selector and keep ratio of the answers that the others are held against."""
RESAMPLES = 10_000
_SEED = 0
_Z95 = 1.959963984540054
"""97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Plan:
    """What is asked about every sample, beside keep 1.

    Attributes:
        keeps: keep ratios below 1, descending.
        selectors: names in the order of the report; the others are held against the first.
        known: the selectors by name, all but the oracle.
        oracle: labels, where the oracle is among the names.
        max_new_tokens: most tokens of an answer; None takes the bundle's default.
    """

    keeps: tuple[float, ...]
    selectors: tuple[str, ...]
    known: Mapping[str, Selector | Policy]
    oracle: Labels | None = None
    max_new_tokens: int | None = None

    @classmethod
    def make(
        cls,
        keeps: Sequence[float],
        selectors: Sequence[str],
        custom: Mapping[str, Selector | Policy] | None = None,
        oracle: Labels | None = None,
        max_new_tokens: int | None = None,
    ) -> Plan:
        """Checks the arguments of `evaluate`, and raises what it raises about them."""
        _check_keeps(keeps)
        _check_selectors(selectors, oracle)
        custom = custom or {}
        named = [name for name in selectors if name != Oracle.name]
        known = {name: custom[name] if name in custom else open_selector(name) for name in named}
        below = tuple(sorted((float(keep) for keep in keeps if keep < 1), reverse=True))
        return cls(below, tuple(selectors), known, oracle, max_new_tokens)

    def choices(self, number: int, sample: Sample) -> Mapping[str, Selector | Policy]:
        """The selectors of one sample; the oracle only where the sample has a label."""
        label = self.oracle(number, sample) if self.oracle else None
        return self.known if label is None else {**self.known, Oracle.name: Oracle(label)}


def _check_keeps(keeps: Sequence[float]) -> None:
    for keep in keeps:
        Budget(ratio=keep)  # raises where the ratio is out of range
    _refuse_twice("keep ratio", keeps)
    if all(keep == 1 for keep in keeps):
        raise RequestError("no keep ratio is below 1, so there is nothing to compare. Use --keep 1,0.5,0.25.")


def _check_selectors(selectors: Sequence[str], oracle: Labels | None) -> None:
    _refuse_twice("selector", selectors)
    if not selectors:
        raise RequestError("there is no selector, expected at least one. Use --select attention.")
    if Oracle.name in selectors and oracle is None:
        raise RequestError(f"selector '{Oracle.name}' chooses by labels, and there are none. Give --labels, or drop it.")
    if Oracle.name not in selectors and oracle is not None:
        raise RequestError(f"there are labels, and selector '{Oracle.name}' is not asked for. Add it, or drop --labels.")


def _refuse_twice(what: str, values: Sequence[object]) -> None:
    value, count = Counter(values).most_common(1)[0] if values else (None, 0)
    if count > 1:
        raise RequestError(f"{what} {value} is given {count} times, expected once. Drop the others.")


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer to one sample."""

    selector: str
    keep: float
    text: str
    right: bool
    kept_tokens: int


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that was answered to one sample, keep 1 first: a line of `answers.jsonl`."""

    number: int
    seconds: float
    replies: tuple[Reply, ...]


def ask(pipe: Pipeline, samples: Sequence[Sample], plan: Plan, start: int = 0) -> Iterator[Record]:
    """Asks one sample after the other, from number `start` on; raises what `Pipeline.generate` raises."""
    for number in range(start, len(samples)):
        begin = perf_counter()
        replies = tuple(_replies(pipe, number, samples[number], plan))
        yield Record(number, perf_counter() - begin, replies)


def _replies(pipe: Pipeline, number: int, sample: Sample, plan: Plan) -> Iterator[Reply]:
    request = Request.ask(sample.question, sample.image, keep=1.0, max_new_tokens=plan.max_new_tokens)
    encoded = pipe.encode(request)

    def reply(name: str, keep: float, request: Request) -> Reply:
        answer = pipe.generate(request, encoded)
        return Reply(name, keep, answer.text, sample.answered_by(answer.text), len(answer.selection.keep_indices))

    yield reply(*WHOLE, request)
    for name, selector in plan.choices(number, sample).items():
        for keep in plan.keeps:
            yield reply(name, keep, replace(request, budget=Budget(ratio=keep), select=selector))


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: int, total: int) -> Estimate:
    """The share `right / total` with its Wilson score interval.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), pp. 209-212.
    """
    share, spread = right / total, _Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding leaves neither range
    return Estimate(share, low, high)


def retained(before: np.ndarray, after: np.ndarray) -> Estimate | None:
    """Right answers after pruning as a share of those before, with its paired bootstrap interval.

    Args:
        before: bool `[samples]`, right at keep 1.
        after: bool `[samples]`, right with fewer tokens.

    Returns:
        None where nothing was right before.
    """
    if not before.any():
        return None
    _, only_after, only_before, both = _resample(before, after)
    was_right = both + only_before
    share = (both + only_after)[was_right > 0] / was_right[was_right > 0]
    return _estimate(after.sum() / before.sum(), share)


def difference_points(first: np.ndarray, other: np.ndarray) -> Estimate:
    """Accuracy of `other` minus that of `first` in percentage points, with its paired bootstrap interval.

    Args:
        first: bool `[samples]`, right with the first selector.
        other: bool `[samples]`, right with the other one.
    """
    _, only_other, only_first, _ = _resample(first, other)
    points = 100 / len(first)
    return _estimate(points * (int(other.sum()) - int(first.sum())), points * (only_other - only_first))


def _resample(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many samples are right in neither, only in other, only in first and in both: `[4, RESAMPLES]` int64.

    Drawing samples with replacement draws these four counts from a multinomial distribution, and no figure here depends on
    more than them. Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    counts = np.bincount(2 * first.astype(np.int64) + other, minlength=4)
    return np.random.default_rng(_SEED).multinomial(len(first), counts / len(first), RESAMPLES).T


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """What one selector did at one keep ratio.

    Attributes:
        selector: its name, `all` at keep 1.
        keep: the keep ratio.
        questions: how many it was asked.
        right: how many answers were right.
        whole_right: how many were right at keep 1, of the same questions.
        kept_tokens: visual tokens that stayed, mean.
        accuracy: share of right answers, with its Wilson interval.
        retained: accuracy as a share of that at keep 1 on the same questions; None where nothing was right there.
        difference_points: accuracy minus that of the first selector at the same keep ratio, on the questions of both, in
            percentage points; None for the first selector itself and at keep 1.
    """

    selector: str
    keep: float
    questions: int
    right: int
    whole_right: int
    kept_tokens: float
    accuracy: Estimate
    retained: Estimate | None
    difference_points: Estimate | None


@dataclass(frozen=True)
class Group:
    """The figures of one question type, or of all questions.

    Attributes:
        type: of the samples; empty for those without one, `all` over every question.
        whole: keep 1.
        rows: by descending keep ratio, then in the order of the selectors; a selector without any question is left out.
    """

    type: str
    whole: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        selectors: in the order of the report.
        keeps: below 1, descending.
        questions: how many there were.
        unlabelled: how many of them have no label and are left out of the oracle's rows; 0 without an oracle.
        seconds: what asking took.
        overall: every question.
        types: by question type, in their first order.
    """

    selectors: tuple[str, ...]
    keeps: tuple[float, ...]
    questions: int
    unlabelled: int
    seconds: float
    overall: Group
    types: tuple[Group, ...]


def evaluate(
    pipe: Pipeline,
    samples: Sequence[Sample],
    keeps: Sequence[float],
    selectors: Sequence[str],
    *,
    custom: Mapping[str, Selector | Policy] | None = None,
    oracle: Labels | None = None,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> Results:
    """Asks every sample at keep 1, and with every selector at every keep ratio below 1, greedily.

    Args:
        pipe: the bundle.
        samples: at least one.
        keeps: keep ratios, 0 < keep <= 1; keep 1 is asked in any case.
        selectors: names in `SELECTORS` or `custom`, or `oracle`; the others are held against the first.
        custom: further selectors by name.
        oracle: the relevance that selector `oracle` chooses by.
        max_new_tokens: most tokens of an answer; None takes the bundle's default.
        progress: is told before the first and after each sample.

    Raises:
        RequestError: no sample, a keep ratio out of range, an unknown selector, one of them twice or none at all, an oracle
            without labels or labels without an oracle, a selector that this bundle can't serve, or an unusable image.
        BackendError: a graph failed.
    """
    plan = Plan.make(keeps, selectors, custom, oracle, max_new_tokens)
    if not samples:
        raise RequestError("there are no samples, expected at least one. Give a folder with questions.")
    return summarise(samples, list(_counted(ask(pipe, samples, plan), 0, len(samples), progress)), plan)


def _counted(records: Iterator[Record], done: int, total: int, progress: Progress | None) -> Iterator[Record]:
    """The records; each time the next one is asked for, `progress` hears how many are finished."""
    tell = progress or (lambda done, total: None)
    tell(done, total)
    for finished, record in enumerate(records, start=done + 1):
        yield record
        tell(finished, total)


def retention_curve(results: Results, selector: str) -> list[RetentionPoint]:
    """What a selector retains at each keep ratio, descending, as a manifest records it.

    Raises:
        RequestError: the selector was not asked anything, or no answer was right at keep 1.
    """
    rows = [row for row in results.overall.rows if row.selector == selector]
    if not rows:
        raise RequestError(f"selector '{selector}' answered nothing. Expected one of {', '.join(results.selectors)}.")
    points = [
        RetentionPoint(row.keep, row.retained.value, row.retained.low, row.retained.high, row.questions)
        for row in rows
        if row.retained
    ]
    if len(points) < len(rows):
        raise RequestError(
            f"no answer of {rows[0].questions} was right at keep 1, so there is nothing to retain. "
            "Use questions that the model answers."
        )
    return points


@dataclass(frozen=True, eq=False)
class _Column:
    """One selector at one keep ratio, over all samples: `[samples]` each."""

    asked: np.ndarray
    right: np.ndarray
    kept_tokens: np.ndarray


def summarise(samples: Sequence[Sample], records: Sequence[Record], plan: Plan) -> Results:
    """The figures of finished records, one for each sample."""
    columns = _columns(records, plan)
    types = dict.fromkeys(sample.type for sample in samples)
    labelled = columns.get((Oracle.name, plan.keeps[0]))
    return Results(
        plan.selectors,
        plan.keeps,
        len(samples),
        0 if labelled is None else int((~labelled.asked).sum()),
        sum(record.seconds for record in records),
        _group("all", np.ones(len(samples), bool), columns, plan),
        tuple(_group(name, np.array([sample.type == name for sample in samples]), columns, plan) for name in types),
    )


def _columns(records: Sequence[Record], plan: Plan) -> dict[tuple[str, float], _Column]:
    found = [{(reply.selector, reply.keep): reply for reply in record.replies} for record in records]
    keys = [WHOLE, *((name, keep) for keep in plan.keeps for name in plan.selectors)]
    columns = {}
    for key in keys:
        replies = [answered.get(key) for answered in found]
        columns[key] = _Column(
            np.array([reply is not None for reply in replies]),
            np.array([reply is not None and reply.right for reply in replies]),
            np.array([reply.kept_tokens if reply else 0 for reply in replies]),
        )
    return columns


def _group(name: str, members: np.ndarray, columns: Mapping[tuple[str, float], _Column], plan: Plan) -> Group:
    keys = [key for key, column in columns.items() if (members & column.asked).any()]
    rows = {key: _row(key, members, columns, plan.selectors[0]) for key in keys}
    return Group(name, rows.pop(WHOLE), tuple(rows.values()))


def _row(key: tuple[str, float], members: np.ndarray, columns: Mapping[tuple[str, float], _Column], first_selector: str) -> Row:
    selector, keep = key
    column, whole = columns[key], columns[WHOLE]
    on = members & column.asked
    questions, right = int(on.sum()), int(column.right[on].sum())
    difference = None
    if key != WHOLE and selector != first_selector:
        first = columns[first_selector, keep]
        both = on & first.asked
        difference = difference_points(first.right[both], column.right[both]) if both.any() else None
    return Row(
        selector,
        keep,
        questions,
        right,
        int(whole.right[on].sum()),
        float(column.kept_tokens[on].mean()),
        wilson(right, questions),
        retained(whole.right[on], column.right[on]),
        difference,
    )


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What answers depend on: the first line of `answers.jsonl`."""

    bundle_sha256: str
    """Of the bundle's manifest, which has the hashes of its files."""
    questions_sha256: str
    labels_sha256: str | None
    keeps: tuple[float, ...]
    selectors: tuple[str, ...]
    max_new_tokens: int | None
    backend: str


def evaluate_bundle(
    bundle: Path,
    data: Path,
    output: Path,
    keeps: Sequence[float],
    selectors: Sequence[str],
    *,
    oracle: Labels | None = None,
    labels_sha256: str | None = None,
    max_new_tokens: int | None = None,
    backend: str = "onnxruntime",
    threads: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Evaluates a bundle on the questions of a folder, and writes `report.json`, `report.md` and `accuracy.png`.

    Each finished sample is a line of `answers.jsonl`; a second call goes on behind the last one.

    Args:
        bundle: the bundle's folder.
        data: folder with `questions.jsonl`.
        output: folder of the report.
        keeps: as for `evaluate`.
        selectors: as for `evaluate`.
        oracle: as for `evaluate`.
        labels_sha256: tells the labels of the oracle from others.
        max_new_tokens: as for `evaluate`.
        backend: what runs the graphs.
        threads: CPU threads; 0 leaves it to the backend.
        force: start anew whatever `output` has of an earlier run.
        progress: is told before the first and after each sample.

    Raises:
        RequestError: what `evaluate` raises, matplotlib is missing, the questions can't be read, or `output` can't be
            written or belongs to another run.
        BundleError: the bundle can't be read or trusted.
        BackendError: the backend is missing, or a graph failed.
    """
    import_module("foveate.charts")  # where matplotlib is missing, fails now and not after hours of work
    plan = Plan.make(keeps, selectors, None, oracle, max_new_tokens)
    samples = read_samples(data)
    Bundle.open(bundle, verify=False)
    hashes = hash_file(bundle / MANIFEST), hash_file(data / QUESTIONS), labels_sha256
    run = Run(*hashes, plan.keeps, plan.selectors, max_new_tokens, backend)
    records = [] if force else _read_answers(output, run)
    if len(records) < len(samples):
        with closing(load(bundle, backend, threads)) as pipe:
            fresh = _counted(ask(pipe, samples, plan, len(records)), len(records), len(samples), progress)
            records = [*records, *_append(fresh, records, run, output)]
    results = summarise(samples, records, plan)
    with _writing(output):
        replace_file(output / "report.json", _report_json(results, run))
        replace_file(output / "report.md", _report_md(results, run, bundle.name).encode())
        replace_file(output / "accuracy.png", _chart(results))
    return results


def _append(fresh: Iterator[Record], records: Sequence[Record], run: Run, output: Path) -> Iterator[Record]:
    """Passes on what is asked, each record as soon as its line is in the file behind those of an earlier call."""
    first = next(fresh)  # what can't be served at all is refused here, before anything is written
    with _writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name in REPORTS:  # of an earlier run
            (output / name).unlink(missing_ok=True)
        replace_file(output / ANSWERS, b"".join(map(_line, [run, *records])))
        file = (output / ANSWERS).open("ab")
    with file:
        for record in chain([first], fresh):
            with _writing(output):
                file.write(_line(record))
                file.flush()
            yield record


def _line(entry: msgspec.Struct) -> bytes:
    return msgspec.json.encode(entry) + b"\n"


def _read_answers(output: Path, run: Run) -> list[Record]:
    """The finished samples of an earlier call; a last line without its end does not count.

    Raises:
        RequestError: they are of another run, or broken.
    """
    file = output / ANSWERS
    if not file.is_file():
        foreign = [name for name in REPORTS if (output / name).exists()]
        if foreign:
            raise RequestError(f"{output / foreign[0]} exists, without the answers of a run. {_REMEDY}")
        return []
    first, *rest = file.read_bytes().split(b"\n")[:-1] or [_line(run)]
    _check_same(_decode(first, Run, f"{file}, line 1"), run, output)
    records = [_decode(line, Record, f"{file}, line {number}") for number, line in enumerate(rest, start=2)]
    if [record.number for record in records] != list(range(len(records))):
        raise RequestError(f"{file} does not have the samples in their order. {_REMEDY}")
    return records


_REMEDY = "Choose another folder with -o, or start anew with --force."
_Entry = TypeVar("_Entry", Run, Record)


def _decode(line: bytes, kind: type[_Entry], where: str) -> _Entry:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{where}: {error}. {_REMEDY}") from error


def _check_same(there: Run, run: Run, output: Path) -> None:
    different = [
        f"{name} was {_short(getattr(there, name))} and is {_short(getattr(run, name))}"
        for name in Run.__struct_fields__
        if getattr(there, name) != getattr(run, name)
    ]
    if different:
        raise RequestError(f"{output} has the answers of another run: {'; '.join(different)}. {_REMEDY}")


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
    return str(value)[:12]  # enough of a hash


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"{folder} can't be written: {error.strerror or error}. Choose another folder.") from error


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
    return [_overall_table(results), accuracy, _types_table(results, "Retained by type of question", lambda row: row.retained)]


def _overall_table(results: Results) -> Table:
    columns = ("keep", "selector", "tokens", "right", "accuracy %", "retained %", f"points against {results.selectors[0]}")
    rows = tuple(
        (
            f"{row.keep:g}",
            row.selector,
            f"{row.kept_tokens:.1f}",
            f"{row.right}/{row.questions}",
            _percent(row.accuracy),
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


def _report_json(results: Results, run: Run) -> bytes:
    report = {"foveate_version": version("foveate"), "run": run, "results": results}
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def _report_md(results: Results, run: Run, bundle_name: str) -> str:
    parts = [f"# Evaluation of {bundle_name}", "![accuracy against kept visual tokens](accuracy.png)"]
    for table in tables(results):
        columns = [" ".join(column.replace("|", r"\|").split()) for column in table.columns]  # a type is the user's text
        rule = ("---:", "---", *["---:"] * (len(columns) - 2))
        lines = [f"| {' | '.join(cells)} |" for cells in (columns, rule, *table.rows)]
        parts += [f"## {table.title}", "\n".join(lines)]
    parts += [remark(results)] if results.unlabelled else []
    parts.append(
        "Accuracy with Wilson score intervals. Retained: accuracy as a share of that at keep 1 on the same questions. "
        "Intervals of retained and of differences: paired bootstrap percentiles, "
        f"{RESAMPLES:,} resamples of the questions, seed {_SEED}."
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

"""The figures of an evaluation: by selector and keep ratio, over all questions and by their type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines import RetentionPoint
from foveate.engines.errors import DataError, OptionError
from foveate.evaluate.ask import WHOLE, Key, Plan, Record
from foveate.evaluate.statistics import Estimate, difference_points, retained, stay, wilson
from foveate.runtime.select.scores import Oracle
from foveate.samples import Sample


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
        stay: of the answers right at keep 1 the share that is right here too, with its Wilson interval; None where nothing was
            right there.
        retained: accuracy as a share of that at keep 1 on the same questions: a net ratio, in which answers that become right
            make up for others; None where nothing was right there.
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
    stay: Estimate | None
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


def retention_curve(results: Results, selector: str) -> list[RetentionPoint]:
    """What stays right with a selector at each keep ratio, descending, as a manifest records it.

    Raises:
        OptionError: the selector was not asked anything.
        DataError: no answer was right at keep 1.
    """
    rows = [row for row in results.overall.rows if row.selector == selector]
    if not rows:
        raise OptionError(f"selector '{selector}' answered nothing. Expected one of {', '.join(results.selectors)}.")
    points = [
        RetentionPoint(
            row.keep,
            row.retained.value,
            row.retained.low,
            row.retained.high,
            row.questions,
            row.stay.value,
            row.stay.low,
            row.stay.high,
        )
        for row in rows
        if row.retained and row.stay
    ]
    if len(points) < len(rows):
        raise DataError(
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


def _columns(records: Sequence[Record], plan: Plan) -> dict[Key, _Column]:
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


def _group(name: str, members: np.ndarray, columns: Mapping[Key, _Column], plan: Plan) -> Group:
    keys = [key for key, column in columns.items() if (members & column.asked).any()]
    rows = {key: _row(key, members, columns, plan.selectors[0]) for key in keys}
    return Group(name, rows.pop(WHOLE), tuple(rows.values()))


def _row(key: Key, members: np.ndarray, columns: Mapping[Key, _Column], first_selector: str) -> Row:
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
        stay(whole.right[on], column.right[on]),
        retained(whole.right[on], column.right[on]),
        difference,
    )

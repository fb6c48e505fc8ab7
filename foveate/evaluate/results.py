"""The figures of an evaluation: by selector and keep ratio, over all questions and by their type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.engines import RetentionPoint
from foveate.engines.errors import DataError, OptionError
from foveate.evaluate.ask import WHOLE, Key, Plan, Record, Reply
from foveate.evaluate.statistics import Estimate, difference_points, retained, stay, wilson
from foveate.runtime.encoding import AUTO, Encode
from foveate.runtime.select.scores import Oracle
from foveate.samples import Sample


@dataclass(frozen=True)
class Row:
    """What one selector did at one keep ratio, behind the whole tower or behind a part of it.

    Attributes:
        selector: its name, `all` at keep 1.
        keep: the keep ratio.
        encode: share of the visual tokens that the tower was to compute, or `auto`; None for all.
        questions: how many it was asked.
        right: how many answers were right.
        whole_right: how many were right at keep 1, of the same questions.
        kept_tokens: visual tokens that stayed, mean.
        accuracy: share of right answers, with its Wilson interval.
        stay: of the answers right at keep 1 the share that is right here too, with its Wilson interval; None where nothing was
            right there.
        retained: accuracy as a share of that at keep 1 on the same questions: a net ratio, in which answers that become right
            make up for others; None where nothing was right there.
        difference_points: accuracy minus that of the first selector at the same keep ratio and `encode`, on the questions of
            both, in percentage points; None for the first selector itself, where it was not asked so, and at keep 1.
        tower: visual tokens that the tower computed, those of the glance among them, as a share of all.
        seen_whole: how many questions it saw everything for, although it was to see a part.
    """

    selector: str
    keep: float
    encode: Encode | None
    questions: int
    right: int
    whole_right: int
    kept_tokens: float
    accuracy: Estimate
    stay: Estimate | None
    retained: Estimate | None
    difference_points: Estimate | None
    tower: float
    seen_whole: int

    @property
    def key(self) -> Key:
        return Key(self.selector, self.keep, self.encode)


@dataclass(frozen=True)
class Group:
    """The figures of one question type, or of all questions.

    Attributes:
        type: of the samples; empty for those without one, `all` over every question.
        whole: keep 1.
        rows: by descending keep ratio, then in the order of the selectors; after those with the whole tower the same for each
            `encode`. A selector without any question is left out.
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
        encodes: shares that the tower was to compute, descending, then `auto`; empty where all was asked with the whole tower.
        seen_whole: why it saw everything all the same, with the number of questions, by `encode`; for `auto`, where it hangs
            on the keep ratio, by that too. Sizes in a reason are left out.
    """

    selectors: tuple[str, ...]
    keeps: tuple[float, ...]
    questions: int
    unlabelled: int
    seconds: float
    overall: Group
    types: tuple[Group, ...]
    encodes: tuple[Encode, ...]
    seen_whole: dict[str, dict[str, int]]


def retention_curve(results: Results, selector: str) -> list[RetentionPoint]:
    """What stays right with a selector at each keep ratio, descending, as a manifest records it: with the whole tower, then
    with each share that it computed.

    Args:
        results: of `parts_only`, or answers behind the whole tower count as those behind a part.
        selector: its name.

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
            row.encode,
        )
        for row in rows
        if row.retained and row.stay and row.encode != AUTO
    ]
    if not all(row.stay for row in rows if row.encode is None):
        raise DataError(
            f"no answer of {rows[0].questions} was right at keep 1, so there is nothing to retain. "
            "Use questions that the model answers."
        )
    return points


@dataclass(frozen=True, eq=False)
class _Column:
    """What was asked in one way, over all samples: `[samples]` each. Nothing but `asked` means anything where that is false."""

    asked: np.ndarray
    right: np.ndarray
    kept_tokens: np.ndarray
    tower_tokens: np.ndarray
    visual_tokens: np.ndarray
    seen_whole: np.ndarray

    @classmethod
    def of(cls, replies: Sequence[Reply | None]) -> _Column:
        encodings = [reply and reply.encoding for reply in replies]
        return cls(
            np.array([reply is not None for reply in replies]),
            np.array([reply is not None and reply.right for reply in replies]),
            np.array([reply.kept_tokens if reply else 0 for reply in replies]),
            np.array([seen.encoded_tokens + seen.glance_tokens if seen else 0 for seen in encodings]),
            np.array([seen.visual_tokens if seen else 0 for seen in encodings]),
            np.array([reply is not None and reply.seen_whole for reply in replies]),
        )


def summarise(samples: Sequence[Sample], records: Sequence[Record], plan: Plan, parts_only: bool = False) -> Results:
    """The figures of finished records, one for each sample.

    Args:
        samples: all of them.
        records: their answers.
        plan: what was asked.
        parts_only: leave out of the rows with `encode` what the tower saw whole all the same.
    """
    columns = _columns(records, plan, parts_only)
    types = dict.fromkeys(sample.type for sample in samples)
    labelled = columns.get(Key(Oracle.name, plan.keeps[0]))
    return Results(
        plan.selectors,
        plan.keeps,
        len(samples),
        0 if labelled is None else int((~labelled.asked).sum()),
        sum(record.seconds for record in records),
        _group("all", np.ones(len(samples), bool), columns, plan),
        tuple(_group(name, np.array([sample.type == name for sample in samples]), columns, plan) for name in types),
        plan.encodes,
        _seen_whole(records, plan),
    )


def _columns(records: Sequence[Record], plan: Plan, parts_only: bool) -> dict[Key, _Column]:
    found = [{reply.key: reply for reply in record.replies if not (parts_only and reply.seen_whole)} for record in records]
    return {key: _Column.of([answered.get(key) for answered in found]) for key in plan.keys}


def _seen_whole(records: Sequence[Record], plan: Plan) -> dict[str, dict[str, int]]:
    """Of the first selector that was asked so: which one chooses does not matter here, nor what is kept of a share."""
    counts: dict[str, dict[str, int]] = {}
    for key in plan.keys:
        if key.encode is None or key.selector != plan.early_selectors[0]:
            continue
        label = f"{AUTO}, keep {key.keep:g}" if key.encode == AUTO else f"{key.encode:g}"
        whole = [reply for record in records for reply in record.replies if reply.key == key and reply.seen_whole]
        found = Counter(re.sub(r"\d+", "N", reply.encoding.reason) for reply in whole if reply.encoding)
        if found:
            counts[label] = dict(found.most_common())
    return counts


def _group(name: str, members: np.ndarray, columns: Mapping[Key, _Column], plan: Plan) -> Group:
    keys = [key for key, column in columns.items() if (members & column.asked).any()]
    rows = {key: _row(key, members, columns, plan.selectors[0]) for key in keys}
    return Group(name, rows.pop(WHOLE), tuple(rows.values()))


def _row(key: Key, members: np.ndarray, columns: Mapping[Key, _Column], first_selector: str) -> Row:
    column, whole = columns[key], columns[WHOLE]
    on = members & column.asked
    questions, right = int(on.sum()), int(column.right[on].sum())
    tower, visual = int(column.tower_tokens[on].sum()), int(column.visual_tokens[on].sum())
    first, difference = columns.get(key._replace(selector=first_selector)), None
    if key != WHOLE and key.selector != first_selector and first is not None:
        both = on & first.asked
        difference = difference_points(first.right[both], column.right[both]) if both.any() else None
    return Row(
        *key,
        questions,
        right,
        int(whole.right[on].sum()),
        float(column.kept_tokens[on].mean()),
        wilson(right, questions),
        stay(whole.right[on], column.right[on]),
        retained(whole.right[on], column.right[on]),
        difference,
        tower / visual if visual else 1.0,
        int(column.seen_whole[on].sum()),
    )

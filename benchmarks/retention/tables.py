"""The tables of docs/retention.md: what is asked for each, and its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from benchmarks.pages import percent, table
from benchmarks.retention.asking import DEFAULT, KEEPS, Case, Part
from foveate.evaluate import Group, Results, Row, wilson
from models.scenes.world import QUESTION_TYPES

Found = Mapping[tuple[Case, Part], Results]
"""What was found of a case, by the first of the parts that are counted as one."""
Lines = Iterator[str]


@dataclass(frozen=True)
class Study:
    """Tables of the same answers.

    Attributes:
        seeds: of the questions.
        groups: parts that are counted as one.
        main: the first of its tables.
        sections: all that stands on the page; the second argument says how many questions are behind it.
    """

    seeds: tuple[int, ...]
    groups: tuple[tuple[Part, ...], ...]
    main: Callable[[Found], Lines]
    sections: Callable[[Found, str], Lines]

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order in which they are asked."""
        return tuple(part for group in self.groups for part in group)

    def found(self, cases: Sequence[Case], seeds: Sequence[int]) -> Found:
        """The results of the finished parts."""
        pairs = [(case, group) for case in cases for group in self.groups]
        return {(case, group[0]): results for case, group in pairs if (results := case.results(seeds, group))}


CDPRUNER = ("cdpruner", "cdpruner-frames", "cdpruner-openvino", "cdpruner-openvino-frames")
FAMILIES = (
    Part("main", (DEFAULT, "learned", "attention", "random", *CDPRUNER)),
    Part("others", ("pooling", "divprune", "dart")),
    Part("clips", ("evs",), kinds=("video",)),
    Part("oracle", ("oracle",)),
)
SELECTORS_ABOVE = {"image": "### Every selector, images", "video": "### Every selector, video"}
"""What stands above the table of each kind."""
GOALS = {("image", 0.5): 99, ("image", 0.25): 97, ("video", 0.25): 97}
"""Retained accuracy in per cent; for video at keep 0.5 there is no goal."""


class _Kept(NamedTuple):
    """A row of some tables: a case at a keep ratio."""

    case: Case
    keep: float
    results: Results

    @property
    def whole(self) -> Row:
        return self.results.overall.whole

    def row(self, selector: str) -> Row:
        return row_of(self.results.overall, selector, self.keep)


def goals_table(found: Found) -> Lines:
    """What stays right with what a bundle chooses by, beside its goal and the other main selectors."""
    others = ("learned", "attention", "cdpruner-openvino-frames", "random")
    goals = {key: f">= {goal}" for key, goal in GOALS.items()}
    rows = [_Kept(case, keep, results) for (case, _), results in found.items() for keep in KEEPS]
    columns: dict[str, Callable[[_Kept], str]] = {
        "checkpoint": lambda row: f"`{row.case.name}`",
        "input": lambda row: row.case.kind,
        "all tokens, right": lambda row: percent(row.whole.accuracy),
        "keep": lambda row: f"{row.keep:g}",
        "goal, retained": lambda row: goals.get((row.case.kind, row.keep), "-"),
        f"{DEFAULT}, stay": lambda row: percent(row.row(DEFAULT).stay),
        f"{DEFAULT}, retained": lambda row: percent(row.row(DEFAULT).retained),
    }
    stays = {f"{name}, stay": partial(lambda name, row: percent(row.row(name).stay), name) for name in others}
    return table(rows, columns | stays)


def selectors_table(found: Found, kind: str) -> Lines:
    """What stays right and what is retained by selector, a column for each checkpoint and keep ratio."""
    columns = {
        f"`{case.name}`, {keep:g}": partial(find_row, results.overall, keep=keep)
        for (case, _), results in found.items()
        for keep in KEEPS
        if case.kind == kind
    }

    def questions(selector: str) -> str:
        asked = {row.questions for find in columns.values() if (row := find(selector))}
        return " - ".join(f"{count:,}" for count in sorted(asked)) or "-"

    def cell(find: Callable[[str], Row | None], selector: str) -> str:
        row = find(selector)
        return f"{percent(row.stay)}; {f'{100 * row.retained.value:.1f}' if row.retained else '-'}" if row else "-"

    names = [name for part in FAMILIES if kind in part.kinds for name in part.selectors]
    cells = {head: partial(cell, find) for head, find in columns.items()}
    return table(names, {"selector": str, "questions": questions, **cells})


def types_table(found: Found, kind: str) -> Lines:
    """Accuracy of each question type with all tokens and with those that a bundle chooses."""
    rows = [_Kept(case, keep, found[case, part]) for case, part in found if case.kind == kind for keep in (1.0, *KEEPS)]
    present = {group.type for row in rows for group in row.results.types}
    known = [name for name in QUESTION_TYPES if name in present]

    def accuracy(type: str, row: _Kept) -> str:
        groups = {group.type: group for group in (*row.results.types, row.results.overall)}
        if type not in groups:
            return "-"
        found = groups[type].whole if row.keep == 1 else row_of(groups[type], DEFAULT, row.keep)
        return f"{100 * found.accuracy.value:.1f}"

    columns = {"checkpoint": lambda row: f"`{row.case.name}`", "keep": lambda row: f"{row.keep:g}"}
    shares = {type: partial(accuracy, type) for type in (*known, *sorted(present - set(known)), "all")}
    return table(rows, columns | shares)


def families_sections(found: Found, behind: str) -> Lines:
    """Goals, then every selector and question type."""
    yield from goals_table(found)
    yield f"Per cent, with 95 % intervals; {behind}."
    yield "![Right answers that stay against kept visual tokens for each family, images above, video below](families.png)"
    yield SELECTORS_ABOVE["image"]
    yield "Stay with its interval; behind the semicolon what is retained."
    yield from selectors_table(found, "image")
    yield SELECTORS_ABOVE["video"]
    yield from selectors_table(found, "video")
    yield "### By question type, images"
    yield f"Right answers in per cent, with all tokens and with `{DEFAULT}`."
    yield from types_table(found, "image")
    yield "### By question type, video"
    yield from types_table(found, "video")


PRECISIONS = (
    Part("fp32"),
    Part("fp32, vision in OpenVINO", vision_backend="openvino"),
    Part("vision int8, decoder fp32", narrowed=(("vision", "int8"),)),
    Part("int8", precision="int8"),
    Part("int8, vision in OpenVINO", precision="int8", vision_backend="openvino"),
    Part("int4 (vision int8)", precision="int4"),
)
LIMIT = 0.01
"""Loss of right answers, as a share of those in fp32, above which a precision is in bold."""


class _Asked(NamedTuple):
    """A row of the table of precisions: a case in one of them, and the right answers by keep ratio."""

    case: Case
    part: Part
    questions: int
    right: Mapping[float, int]
    plain: Mapping[float, float]
    """Those in fp32, as a share of the questions."""


def precisions_table(found: Found) -> Lines:
    """Right answers by precision and keep ratio; those that lose more than `LIMIT` of fp32's in bold."""
    plain = {
        case: {keep: right / results.questions for keep, right in _right(results).items()}
        for (case, part), results in found.items()
        if part == PRECISIONS[0]
    }
    rows = [
        _Asked(case, part, results.questions, _right(results), plain[case])
        for (case, part), results in found.items()
        if case in plain
    ]

    def share(keep: float, row: _Asked) -> str:
        text = percent(wilson(row.right[keep], row.questions))
        return f"**{text}**" if row.right[keep] / row.questions < (1 - LIMIT) * row.plain[keep] else text

    columns: dict[str, Callable[[_Asked], str]] = {
        "checkpoint": lambda row: f"`{row.case.name}`",
        "input": lambda row: row.case.kind,
        "precision": lambda row: row.part.title,
    }
    return table(rows, columns | {f"keep {keep:g}": partial(share, keep) for keep in (1.0, *KEEPS)})


def precisions_sections(found: Found, behind: str) -> Lines:
    """The table alone: the page says above it what is behind it."""
    return precisions_table(found)


def _right(results: Results) -> dict[float, int]:
    """Right answers at keep 1 and at each of `KEEPS`."""
    return {1.0: results.overall.whole.right} | {keep: row_of(results.overall, DEFAULT, keep).right for keep in KEEPS}


def row_of(group: Group, selector: str, keep: float) -> Row:
    """What a selector did at a keep ratio."""
    row = find_row(group, selector, keep)
    assert row is not None, f"{selector} was not asked at keep {keep:g}"
    return row


def find_row(group: Group, selector: str, keep: float) -> Row | None:
    """What a selector did, if it was asked."""
    return next((row for row in group.rows if (row.selector, row.keep) == (selector, keep)), None)


STUDIES = {
    # Nobody looked at seeds 11 to 13 before these tables; 0, 2 and 3 showed what training and selectors lack.
    "families": Study((11, 12, 13), (FAMILIES,), goals_table, families_sections),
    "precisions": Study((3,), tuple((part,) for part in PRECISIONS), precisions_table, precisions_sections),
}

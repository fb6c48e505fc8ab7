"""The tables of every family: questions of several seeds, asked in several parts, as one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from benchmarks.families import KEEPS, PARTS, SEEDS, Case, goals_table, selectors_table
from benchmarks.pages import row_of
from foveate.evaluate import ANSWERS, REPORTS, Record, Reply, wilson


def write_part(case: Case, seed: int, part: str, right: list[bool], finished: bool = True) -> None:
    """Answers of a part to one question for each of `right`: with all tokens each is right, with fewer those."""
    data, report = case.folder(seed) / case.kind, case.report(seed, part)
    (data / "images").mkdir(parents=True, exist_ok=True)
    (data / "images" / "0.png").write_bytes(b"")
    row = {"image": "images/0.png", "question": "What?", "answer": "a", "type": "colour"}
    (data / "questions.jsonl").write_text((json.dumps(row) + "\n") * len(right))
    report.mkdir(parents=True)
    records = [
        Record(number, 1.0, (Reply("all", 1.0, "a", True, 8), *(Reply(n, k, "", ok, 4) for n in PARTS[part] for k in KEEPS)))
        for number, ok in enumerate(right)
    ]
    (report / ANSWERS).write_bytes(b"{}\n" + b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    if finished:
        (report / REPORTS[0]).write_bytes(b"{}")


def test_seeds_and_parts_are_pooled(tmp_path: Path) -> None:
    case = Case(Path("models/qwen2-vl-tiny"), "image", tmp_path)
    write_part(case, 11, "main", [True] * 3 + [False])
    write_part(case, 11, "others", [True] * 4)
    write_part(case, 12, "main", [True] * 6)
    write_part(case, 12, "others", [True] * 6, finished=False)
    write_part(case, 13, "main", [False] * 9, finished=False)
    results = case.results(SEEDS)
    assert results is not None
    assert results.questions == 10
    assert row_of(results.overall, "foveated", 0.5).stay == wilson(9, 10)
    assert row_of(results.overall, "dart", 0.25).stay == wilson(4, 4)
    table = list(selectors_table({case: results}, "image"))
    assert next(row for row in table if row.startswith("| random ")).startswith("| random | 10 | 90.0 (")
    assert next(row for row in table if row.startswith("| dart ")).startswith("| dart | 4 | 100.0 (")
    assert next(row for row in table if row.startswith("| oracle ")) == "| oracle | - | - | - |"
    assert len(list(goals_table({case: results}))) == 2 + len(KEEPS)


def test_nothing_finished_gives_nothing(tmp_path: Path) -> None:
    assert Case(Path("models/qwen2-vl-tiny"), "image", tmp_path).results(SEEDS) is None

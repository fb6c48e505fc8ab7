"""The tables of retention: questions of several seeds, asked in several parts, as one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from benchmarks import readme
from benchmarks.retention import __main__ as retention
from benchmarks.retention.asking import KEEPS, KINDS, Case, Part
from benchmarks.retention.tables import FAMILIES, PRECISIONS, STUDIES, goals_table, row_of, selectors_table
from foveate.evaluate import ANSWERS, REPORTS, Record, Reply, wilson

MAIN, OTHERS, *_ = FAMILIES
SEEDS = (11, 12, 13)
DOCS = Path(__file__).parents[2] / "docs"


def write_part(case: Case, seed: int, part: Part, right: list[bool], finished: bool = True) -> None:
    """Answers of a part to one question for each of `right`: with all tokens each is right, with fewer those."""
    data, report = case.folder(seed) / case.kind, case.report(seed, part)
    (data / "images").mkdir(parents=True, exist_ok=True)
    (data / "images" / "0.png").write_bytes(b"")
    row = {"image": "images/0.png", "question": "What?", "answer": "a", "type": "colour"}
    (data / "questions.jsonl").write_text((json.dumps(row) + "\n") * len(right))
    report.mkdir(parents=True)
    records = [
        Record(number, 1.0, (Reply("all", 1.0, "a", True, 8), *(Reply(n, k, "", ok, 4) for n in part.selectors for k in KEEPS)))
        for number, ok in enumerate(right)
    ]
    (report / ANSWERS).write_bytes(b"{}\n" + b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    if finished:
        (report / REPORTS[0]).write_bytes(b"{}")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(Path("models/qwen2-vl-tiny"), "image", tmp_path)


def test_seeds_and_parts_are_pooled(case: Case) -> None:
    write_part(case, 11, MAIN, [True] * 3 + [False])
    write_part(case, 11, OTHERS, [True] * 4)
    write_part(case, 12, MAIN, [True] * 6)
    write_part(case, 12, OTHERS, [True] * 6, finished=False)
    write_part(case, 13, MAIN, [False] * 9, finished=False)
    results = case.results(SEEDS, FAMILIES)
    assert results is not None
    assert results.questions == 10
    assert row_of(results.overall, "foveated", 0.5).stay == wilson(9, 10)
    assert row_of(results.overall, "dart", 0.25).stay == wilson(4, 4)
    found = STUDIES["families"].found([case], SEEDS)
    table = list(selectors_table(found, "image"))
    assert next(row for row in table if row.startswith("| random ")).startswith("| random | 10 | 90.0 (")
    assert next(row for row in table if row.startswith("| dart ")).startswith("| dart | 4 | 100.0 (")
    assert next(row for row in table if row.startswith("| oracle ")) == "| oracle | - | - | - |"
    assert len(list(goals_table(found))) == 2 + len(KEEPS)


def test_nothing_finished_gives_nothing(case: Case) -> None:
    assert case.results(SEEDS, FAMILIES) is None


def test_a_precision_that_loses_more_than_one_per_cent_is_in_bold(case: Case) -> None:
    fp32, *_, int8, int4 = (part for part in PRECISIONS if not part.vision_backend)
    for part, right in {fp32: 100, int8: 98, int4: 99}.items():
        write_part(case, 3, part, [True] * right + [False] * (100 - right))
    study = STUDIES["precisions"]
    _, _, *rows = study.main(study.found([case], (3,)))
    assert [row.split(" | ")[2:4] for row in rows] == [
        [part.title, "100.0 (96.3 - 100.0)"] for part in PRECISIONS if part in (fp32, int8, int4)
    ]
    assert [row.count("**") for row in rows] == [0, 4, 0]


def test_parts_lie_apart_and_share_bundles(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [*FAMILIES, *PRECISIONS]
    assert len({case.report(3, part) for part in parts}) == len(parts)
    monkeypatch.setattr("foveate.export", lambda checkpoint, bundle, options: bundle.mkdir(parents=True))
    assert [case.bundle(part).name for part in PRECISIONS] == [
        *("fp32.bundle", "fp32.bundle", "fp32-vision-int8.bundle"),
        *("int8.bundle", "int8.bundle", "int4.bundle"),
    ]
    assert {case.bundle(part).name for part in FAMILIES} == {"fp32.bundle"}


def test_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((retention, "PAGE"), (readme, "RETENTION"), (readme, "BENCHMARKS"), (readme, "README")):
        path = getattr(module, name)
        copy = tmp_path / path.name
        copy.write_text((DOCS.parent / path).read_text())
        monkeypatch.setattr(module, name, copy)
    monkeypatch.setattr(retention, "CHART", tmp_path / "families.png")
    cases = [Case(Path("models/vila1.5-tiny"), kind, tmp_path) for kind in KINDS]
    for case in cases:
        write_part(case, 7, MAIN, [True] * 3 + [False])
    retention.write_page("families", STUDIES["families"].found(cases, (7,)), (7,))
    page, front = (tmp_path / name for name in ("retention.md", "README.md"))
    assert "4 held-out questions of each checkpoint and kind, one a picture or clip, seeds 7." in page.read_text()
    assert "| `vila1.5-tiny`, **foveated** | 75.0 | 75.0 | 75.0 | 75.0 |" in front.read_text()
    assert "qwen2-vl-tiny`, **foveated**" not in front.read_text()
    assert (tmp_path / "families.png").read_bytes().startswith(b"\x89PNG")

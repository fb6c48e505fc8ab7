"""README's tables are rows and columns of the pages'."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.pages import read_table, table
from benchmarks.peers.results import MARK

ROOT = Path(__file__).parents[2]
HEADS = "| tool | precision | keep | prompt tokens | vision s | prefill s | TTFT s | decode tokens/s | peak RSS GiB |"


def test_the_readme_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks.readme` writes it."""
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / readme.README).read_text())
    monkeypatch.setattr(readme, "README", copy)
    monkeypatch.chdir(ROOT)
    readme.write_readme()
    assert copy.read_text() == (ROOT / "README.md").read_text()
    assert all(f"| {case.title} | {case.keep} | " in copy.read_text() for case in readme.CASES)


def test_times_are_rounded_and_the_best_are_bold() -> None:
    rows = (
        "| foveate | int8 | 0.25 | 262 | 18.15 | 1.14 | 19.29 (18.86 - 19.60) | 17.7 | 3.0 |",
        "| transformers | bf16 | 1 | 910 | 27.64 | 1.13 | 35.20 (32.61 - 36.88) | 3.6 | 4.9 |",
        "| another | bf16 | 1 | 910 | 27.64 | 1.00 | 1.20 | 99.0 | 0.1 |",
    )
    page = "\n".join(["", MARK, "", "Measured once.", "", HEADS, "|---" * 9 + "|", *rows, "", "| other |"])
    assert list(readme.times(page))[2:] == [
        "| **foveate int8** | 0.25 | 18.2 | **1.14** | **19.3** | **17.7** | **3.0** |",
        "| transformers bf16 | 1 | 27.6 | **1.13** | 35.2 | 3.6 | 4.9 |",
    ]


def test_a_table_is_read_as_it_was_written() -> None:
    lines = table([("a", ""), ("b", "2 (1 - 3)")], {"": lambda row: row[0], "value": lambda row: row[1]})
    text = "\n".join(["### Above", "", "x", "", *lines])
    assert "| | value |\n|---|---|\n| a | |\n" in text
    assert read_table(f"\n{text}\n", "### Above") == [{"": "a", "value": ""}, {"": "b", "value": "2 (1 - 3)"}]


@pytest.mark.parametrize("text", ["\n### Above\n\nnothing\n", "\n| a |\n|---|\n| b |\n"])
def test_a_page_without_the_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there is no table below '### Above'"):
        read_table(text, "### Above")

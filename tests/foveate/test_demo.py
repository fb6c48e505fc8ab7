"""The demo's answers and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate import DataError
from foveate.demo import KEEPS, run
from foveate.samples import read_samples
from tests.foveate.conftest import SCENES


def test_every_question_is_answered_at_each_keep_ratio(bundle: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    samples = read_samples(SCENES)
    outcomes = run(bundle, samples, tmp_path / "out", asked.append)
    assert asked == [sample.question for sample in samples]
    for outcome in outcomes:
        kept = [len(outcome.answers[keep].selection.keep_indices) for keep in KEEPS]
        kv_bytes = [outcome.answers[keep].kv_bytes for keep in KEEPS]
        assert kept == sorted(kept, reverse=True)
        assert kv_bytes == sorted(kv_bytes, reverse=True)
        assert outcome.picture.is_file()
    facts = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert [fact["answers"]["0.5"]["text"] for fact in facts] == [outcome.answers[0.5].text for outcome in outcomes]


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(DataError, match=r"questions\.jsonl.*question"):
        read_samples(tmp_path)


def test_a_folder_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_samples(tmp_path)

"""`foveate evaluate`: labels for the oracle, and a report that survives a kill."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, Request
from foveate.engines.format.reseal import reseal
from foveate.evaluate import (
    ANSWERS,
    REPORTS,
    Results,
    evaluate_bundle,
)
from foveate.exporter.scorer.store import read_header, read_labels
from foveate.runtime.select.scores import Oracle
from tests.foveate.conftest import CHECKPOINT, KEEPS, SAMPLES, SCENES, SELECTORS, Run
from tests.foveate.test_cli import assert_one_clear_line

OPTIONS = ("--keep", "1,0.25,0.05", "--select", "attention,random")


@pytest.fixture(scope="module")
def finished(bundle: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report. Not to be changed."""
    output = tmp_path_factory.mktemp("evaluate") / "report"
    result = run("evaluate", bundle, SCENES, *OPTIONS, "-o", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture
def report(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished report."""
    return Path(shutil.copytree(finished, tmp_path / "report"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_seconds(results: Results) -> Results:
    return replace(results, seconds=0.0)


# Labels for the oracle

WITH_LABELS = ("--keep", "0.05", "--select", "random,oracle")


@pytest.fixture(scope="module")
def labels(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of every scene, in three shards. Not to be changed."""
    output = tmp_path_factory.mktemp("labels") / "labels"
    result = run("scorer", "label", CHECKPOINT, SCENES, "-o", output, "--wrong", "--shard-size", 4)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture
def copied(labels: Path, tmp_path: Path) -> Path:
    """A copy of the labels."""
    return Path(shutil.copytree(labels, tmp_path / "labels"))


def test_the_command_lets_the_oracle_choose_by_the_labels(
    run: Run, bundle: Path, pipe: Pipeline, labels: Path, tmp_path: Path
) -> None:
    result = run("evaluate", bundle, SCENES, *WITH_LABELS, "--labels", labels, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "report" / ANSWERS).read_text().splitlines()[1:]
    texts = [{reply["selector"]: reply["text"] for reply in json.loads(line)["replies"]} for line in lines]
    for label, sample, answered in zip(read_labels(labels), SAMPLES, texts, strict=True):
        request = Request.ask(sample.question, sample.image, keep=0.05, select=Oracle(label.relevance))
        assert answered["oracle"] == pipe.generate(request).text
    assert any(answered["oracle"] != answered["random"] for answered in texts)
    rows = json.loads((tmp_path / "report" / "report.json").read_bytes())["results"]["overall"]["rows"]
    assert [(row["selector"], row["questions"]) for row in rows] == [("random", 12), ("oracle", 12)]


def test_samples_without_a_label_are_left_out_of_the_oracles_rows(run: Run, bundle: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    assert run("scorer", "label", CHECKPOINT, SCENES, "-o", labels, "--wrong", "--limit", 5, "--seed", 1).exit_code == 0
    result = run("evaluate", bundle, SCENES, *WITH_LABELS, "--labels", labels, "-o", tmp_path / "report")
    assert "7 of 12 questions have no label" in result.stdout
    lines = (tmp_path / "report" / ANSWERS).read_text().splitlines()[1:]
    asked = {line["number"] for line in map(json.loads, lines) if any(r["selector"] == "oracle" for r in line["replies"])}
    assert asked == set(read_header(labels).samples)


def test_other_labels_are_another_run(run: Run, bundle: Path, labels: Path, tmp_path: Path) -> None:
    options = (*WITH_LABELS, "-o", tmp_path / "report")
    assert run("evaluate", bundle, SCENES, *options, "--labels", labels).exit_code == 0
    other = tmp_path / "other"
    assert run("scorer", "label", CHECKPOINT, SCENES, "-o", other, "--wrong", "--objective", "logit").exit_code == 0
    before = contents(tmp_path / "report")
    result = run("evaluate", bundle, SCENES, *options, "--labels", other)
    assert_one_clear_line(result, "labels_sha256 was", "start anew")
    assert contents(tmp_path / "report") == before


def test_labels_of_other_questions(run: Run, bundle: Path, labels: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(SCENES, tmp_path / "data"))
    lines = (data / "questions.jsonl").read_text().splitlines(keepends=True)
    (data / "questions.jsonl").write_text("".join(reversed(lines)))
    result = run("evaluate", bundle, data, *WITH_LABELS, "--labels", labels, "-o", tmp_path / "report")
    assert_one_clear_line(result, str(labels), "of other questions", f"expected those of {data}", "foveate scorer label")
    assert not (tmp_path / "report").exists()


def test_labels_of_another_checkpoint(run: Run, bundle: Path, labels: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other.bundle"))
    manifest = json.loads((other / "manifest.json").read_bytes())
    manifest["source"] |= {"name": "qwen2-vl-huge", "sha256": "0" * 64}
    (other / "manifest.json").write_text(json.dumps(manifest))
    reseal(other / "manifest.json")
    result = run("evaluate", other, SCENES, *WITH_LABELS, "--labels", labels, "-o", tmp_path / "report")
    assert_one_clear_line(result, "of checkpoint 'qwen2-vl-tiny'", "expected those of 'qwen2-vl-huge'", "foveate scorer label")
    assert not (tmp_path / "report").exists()


def test_labels_that_are_not_finished(run: Run, bundle: Path, copied: Path, tmp_path: Path) -> None:
    (copied / "shard-00001.safetensors").unlink()
    result = run("evaluate", bundle, SCENES, *WITH_LABELS, "--labels", copied, "-o", tmp_path / "report")
    assert_one_clear_line(result, "shard-00001", "is not finished", "goes on where it stopped")
    assert not (tmp_path / "report").exists()


def test_a_folder_without_labels(run: Run, bundle: Path, tmp_path: Path) -> None:
    result = run("evaluate", bundle, SCENES, *WITH_LABELS, "--labels", SCENES, "-o", tmp_path / "report")
    assert_one_clear_line(result, f"{SCENES} holds no labels")


def test_labels_without_the_oracle(run: Run, bundle: Path, labels: Path, tmp_path: Path) -> None:
    result = run("evaluate", bundle, SCENES, *OPTIONS, "--labels", labels, "-o", tmp_path / "report")
    assert_one_clear_line(result, "leave out --labels")


def test_a_missing_safetensors_names_its_extra(
    run: Run, bundle: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "foveate.exporter.scorer.store", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    result = run("evaluate", bundle, SCENES, *WITH_LABELS, "--labels", labels, "-o", tmp_path / "report")
    assert_one_clear_line(result, "'safetensors' is not installed", "'safetensors>=")


# The report


def test_the_command_writes_and_prints_the_report(run: Run, bundle: Path, finished: Path, tmp_path: Path) -> None:
    result = run("evaluate", bundle, SCENES, *OPTIONS, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert {path.name for path in finished.iterdir()} == {ANSWERS, *REPORTS}
    report = json.loads((finished / "report.json").read_bytes())
    lines = [json.loads(line) for line in (finished / ANSWERS).read_text().splitlines()]
    assert lines[0] == report["run"]
    assert report["results"]["questions"] == len(lines) - 1 == 12
    for row in report["results"]["overall"]["rows"]:
        replies = [reply for line in lines[1:] for reply in line["replies"]]
        own = [reply for reply in replies if (reply["selector"], reply["keep"]) == (row["selector"], row["keep"])]
        assert row["right"] == sum(reply["right"] for reply in own)
        assert row["kept_tokens"] == pytest.approx(np.mean([reply["kept_tokens"] for reply in own]))
        figures = f"{row['right']}/12"
        assert any({row["selector"], figures} <= set(line.split()) for line in result.stdout.splitlines())
    assert (finished / "report.md").read_text().count("\n| 0.05 | random |") == 3
    with Image.open(finished / "accuracy.png") as picture:
        assert picture.size == (1600, 896)


def test_a_type_may_hold_any_text(run: Run, bundle: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(SCENES, tmp_path / "data"))
    lines = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()[:2]]
    types = ["[red]a|b\n", "$x_"]
    marked = [json.dumps({**line, "type": type}) for line, type in zip(lines, types, strict=True)]
    (data / "questions.jsonl").write_text("\n".join(marked))
    result = run("evaluate", bundle, data, *OPTIONS, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "[red]a|b" in result.stdout
    assert "\n| keep | selector | [red]a\\|b (1) | $x_ (1) |\n" in (tmp_path / "report" / "report.md").read_text()


def test_a_part_of_the_tower_has_rows_of_its_own(run: Run, bundle: Path, tmp_path: Path) -> None:
    options = ("--keep", "0.5,0.25", "--select", "attention,random", "--encode", "0.25,auto", "--max-new-tokens", "1")
    result = run("evaluate", bundle, SCENES, *options, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    told = "Without rows with encode, where the choice comes before the tower: random."
    assert told in " ".join(result.stdout.split())
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| encode : keep | selector | tower % | seen whole | tokens |" in page
    assert [page.count(f"\n| {budget} | attention |") for budget in ("all : 0.5", "0.25 : 0.25", "auto : 0.5")] == [3, 3, 3]
    assert "0.25 : 0.5" not in page
    assert told in page
    assert "a smaller picture would show too little (" in page
    lines = [json.loads(line) for line in (tmp_path / "report" / ANSWERS).read_bytes().splitlines()]
    assert lines[0]["encodes"] == [0.25, "auto"]
    found = [reply["encoding"] for line in lines[1:] for reply in line["replies"] if reply.get("encode") == 0.25]
    assert {0} < {seen["glance_tokens"] for seen in found}
    without = options[:4]
    result = run("evaluate", bundle, SCENES, *without, "--max-new-tokens", "1", "-o", tmp_path / "report")
    assert_one_clear_line(result, "encodes was 0.25,auto and is none")


def test_a_stopped_run_goes_on_where_it_ended(bundle: Path, finished: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    output = tmp_path / "report"
    with pytest.raises(KeyboardInterrupt):
        evaluate_bundle(bundle, SCENES, output, KEEPS, SELECTORS, progress=stop)
    assert [path.name for path in output.iterdir()] == [ANSWERS]
    before = (output / ANSWERS).read_bytes()
    assert before.count(b"\n") == 1 + 5

    steps: list[int] = []
    resumed = evaluate_bundle(bundle, SCENES, output, KEEPS, SELECTORS, progress=lambda done, total: steps.append(done))
    assert steps == list(range(5, 13))
    assert (output / ANSWERS).read_bytes().startswith(before)
    assert without_seconds(resumed) == without_seconds(evaluate_bundle(bundle, SCENES, finished, KEEPS, SELECTORS))


@pytest.mark.parametrize("lines", [0, 1, 4, 12], ids=["in the header", "first", "fifth", "last"])
def test_half_a_line_is_asked_again(bundle: Path, report: Path, lines: int) -> None:
    whole = (report / ANSWERS).read_bytes().splitlines(keepends=True)
    (report / ANSWERS).write_bytes(b"".join(whole[:lines]) + whole[lines][:-1])
    steps: list[int] = []
    evaluate_bundle(bundle, SCENES, report, KEEPS, SELECTORS, progress=lambda done, total: steps.append(done))
    assert steps[0] == max(0, lines - 1)
    replies = [json.loads(line).get("replies") for line in (report / ANSWERS).read_bytes().splitlines()]
    assert replies == [json.loads(line).get("replies") for line in whole]


def test_a_finished_run_only_writes_its_report_again(
    bundle: Path, finished: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in REPORTS:
        (report / name).unlink()
    monkeypatch.delattr("foveate.evaluate.run.load")
    evaluate_bundle(bundle, SCENES, report, KEEPS, SELECTORS)
    assert contents(report) == contents(finished)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--keep", "1,0.25", "--select", "attention,random"), "keeps was 0.25,0.05 and is 0.25"),
        (("--keep", "1,0.25,0.05", "--select", "random,attention"), "selectors was attention,random and is random,attention"),
        ((*OPTIONS, "--max-new-tokens", "4"), "max_new_tokens was None and is 4"),
    ],
)
def test_answers_of_another_run_are_kept(run: Run, bundle: Path, report: Path, options: tuple[str, ...], part: str) -> None:
    before = contents(report)
    assert_one_clear_line(run("evaluate", bundle, SCENES, *options, "-o", report), part, "start anew", "another output folder")
    assert contents(report) == before


def test_other_questions_and_another_bundle_are_another_run(run: Run, bundle: Path, report: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(SCENES, tmp_path / "data"))
    (data / "questions.jsonl").write_bytes((data / "questions.jsonl").read_bytes() + b"\n")
    assert_one_clear_line(run("evaluate", bundle, data, *OPTIONS, "-o", report), "questions_sha256 was")
    other = Path(shutil.copytree(bundle, tmp_path / "other.bundle"))
    manifest = json.loads((other / "manifest.json").read_bytes())
    (other / "manifest.json").write_text(json.dumps({**manifest, "foveate_version": "0.0.1"}))
    reseal(other / "manifest.json")
    assert_one_clear_line(run("evaluate", other, SCENES, *OPTIONS, "-o", report), "bundle_sha256 was")


def test_force_starts_anew(run: Run, bundle: Path, report: Path) -> None:
    (report / ANSWERS).write_text("not a run\n")
    options = ("--keep", "0.5", "--select", "attention", "-o", report)
    assert_one_clear_line(run("evaluate", bundle, SCENES, *options), "line 1", "start anew")
    assert run("evaluate", bundle, SCENES, *options, "--force").exit_code == 0
    assert json.loads((report / "report.json").read_bytes())["run"]["keeps"] == [0.5]


def _swap_lines(lines: list[bytes]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


def _break_a_line(lines: list[bytes]) -> None:
    lines[3] = lines[3][:20] + b"\n"


@pytest.mark.parametrize(
    ("change", "part"), [(_swap_lines, "in their order"), (_break_a_line, "line 4")], ids=["order", "broken line"]
)
def test_answers_that_were_edited_are_refused(
    run: Run, bundle: Path, report: Path, change: Callable[[list[bytes]], None], part: str
) -> None:
    lines = (report / ANSWERS).read_bytes().splitlines(keepends=True)
    change(lines)
    (report / ANSWERS).write_bytes(b"".join(lines))
    before = contents(report)
    assert_one_clear_line(run("evaluate", bundle, SCENES, *OPTIONS, "-o", report), part, "start anew")
    assert contents(report) == before


# Bad input


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--keep", "1,half"), "--keep is '1,half'"),
        (("--keep", ""), "--keep is ''"),
        (("--keep", "1,0"), "ratio is 0.0"),
        (("--keep", "1,nan"), "nan"),
        (("--keep", "0.5,50e-2"), "given 2 times"),
        (("--keep", "1"), "below 1"),
        (("--encode", "half"), "--encode is 'half'"),
        (("--encode", "0.01"), "encode 0.01 is below every keep ratio"),
        (("--encode", "0.5", "--select", "random"), "Add attention"),
        (("--select", "attention,astrology"), "no selector 'astrology'"),
        (("--select", "attention,attention"), "given 2 times"),
        (("--select", "oracle"), "Give labels"),
        (("--select", "learned"), "needs a trained scorer"),
        (("--select", "attention", "--max-new-tokens", "0"), "max_new_tokens is 0"),
        (("--select", "attention", "--backend", "abacus"), "abacus"),
    ],
)
def test_bad_options_write_nothing(run: Run, bundle: Path, tmp_path: Path, options: tuple[str, ...], part: str) -> None:
    assert_one_clear_line(run("evaluate", bundle, SCENES, *options, "-o", tmp_path / "report"), part)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_can_not_start_keeps_what_is_there(run: Run, bundle: Path, report: Path) -> None:
    before = contents(report)
    result = run("evaluate", bundle, SCENES, "--select", "learned", "--force", "-o", report)
    assert_one_clear_line(result, "needs a trained scorer")
    assert contents(report) == before


def test_paths_that_can_not_be_used(run: Run, bundle: Path, tmp_path: Path) -> None:
    output = ("--select", "attention", "-o", tmp_path / "report")
    assert_one_clear_line(run("evaluate", tmp_path, SCENES, *output), "is not a bundle")
    assert_one_clear_line(run("evaluate", bundle, tmp_path, *output), "questions.jsonl does not exist")
    (tmp_path / "report").write_text("a file")
    assert_one_clear_line(run("evaluate", bundle, SCENES, *output), "can't be written", "another folder")
    assert (tmp_path / "report").read_text() == "a file"


def test_a_report_of_something_else_is_kept(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    result = run("evaluate", bundle, SCENES, "--select", "attention", "-o", tmp_path)
    assert_one_clear_line(result, "report.md exists", "start anew")
    assert contents(tmp_path) == {"report.md": b"mine"}


def test_matplotlib_is_missed_before_the_work_begins(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "foveate.charts")
    monkeypatch.delattr("foveate.charts")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr("foveate.evaluate.run.load")
    assert_one_clear_line(run("evaluate", bundle, SCENES, "-o", tmp_path / "report"), "pip install 'matplotlib>=")
    assert list(tmp_path.iterdir()) == []

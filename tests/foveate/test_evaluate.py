"""Accuracy with fewer visual tokens: what is asked, the statistics, and a report that survives a kill."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate import Pipeline, Request, RequestError
from foveate.charts import Curve, accuracy_chart, spread
from foveate.evaluate import (
    ANSWERS,
    REPORTS,
    Estimate,
    Plan,
    Results,
    ask,
    difference_points,
    evaluate,
    evaluate_bundle,
    remark,
    retained,
    retention_curve,
    summarise,
    tables,
    wilson,
)
from foveate.exporter.scorer.store import read_header, read_labels
from foveate.runtime import Prepared, Relevance
from foveate.runtime.select.scores import Oracle
from foveate.samples import Sample, read_samples
from tests.foveate.conftest import CHECKPOINT, SCENES, Run
from tests.foveate.test_cli import assert_one_clear_line

SAMPLES = read_samples(SCENES)
KEEPS = (1.0, 0.25, 0.05)
SELECTORS = ("attention", "random")
OPTIONS = ("--keep", "1,0.25,0.05", "--select", "attention,random")


def last_tokens(relevance: Relevance, count: int) -> np.ndarray:
    return np.arange(len(relevance) - count, len(relevance))


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    pipe = foveate.load(bundle)
    yield pipe
    pipe.close()


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


# The statistics


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(right: int, total: int, low: float, high: float) -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I."""
    estimate = wilson(right, total)
    assert (estimate.value, round(estimate.low, 4), round(estimate.high, 4)) == (right / total, low, high)


@example((108, 108))
@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_intervals_hold_the_share(counts: tuple[int, int]) -> None:
    estimate = wilson(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_same_answers_retain_exactly_everything_and_do_not_differ(right: list[bool]) -> None:
    answers = np.array(right)
    assert retained(answers, answers) == (Estimate(1.0, 1.0, 1.0) if any(right) else None)
    assert difference_points(answers, answers) == Estimate(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """1,000 samples: 900 right in both, 60 only before, 20 only after."""
    before = np.repeat([True, True, False, False], [900, 60, 20, 20])
    after = np.repeat([True, False, True, False], [900, 60, 20, 20])
    return before, after


def test_the_sign_and_the_width_of_a_paired_difference(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    worse, better = difference_points(*pairs), difference_points(*reversed(pairs))
    half = 1.96 * 100 * np.sqrt(80 - 40**2 / 1000) / 1000  # of the normal approximation, as for McNemar's test
    assert worse.value == pytest.approx(-4)
    assert (worse.low, worse.high) == pytest.approx((-4 - half, -4 + half), abs=0.15)
    assert worse.high < 0 < better.low
    assert better.value == pytest.approx(4)


def test_retained_intervals_are_those_of_resampled_samples(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = pairs
    drawn = np.random.default_rng(5).integers(len(before), size=(4000, len(before)))
    expected = np.percentile(after[drawn].sum(1) / before[drawn].sum(1), (2.5, 97.5))
    estimate = retained(before, after)
    assert estimate is not None
    assert estimate.value == 920 / 960
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.0015)


def test_resamples_without_a_right_answer_do_not_count() -> None:
    before = np.array([True, False, False, False])
    estimate = retained(before, np.array([True, True, False, False]))
    assert estimate is not None
    assert estimate.value == 2
    assert np.isfinite([estimate.low, estimate.high]).all()


# What is asked


@pytest.mark.parametrize(
    ("keeps", "selectors", "part"),
    [
        ([], ["attention"], "below 1"),
        ([1.0], ["attention"], "below 1"),
        ([0.5, 1.5], ["attention"], "1.5"),
        ([0.5, float("nan")], ["attention"], "nan"),
        ([0.5, 0.25, 0.5], ["attention"], "keep ratio 0.5 is given 2 times"),
        ([1, 1.0, 0.5], ["attention"], "is given 2 times"),
        ([0.5], [], "no selector"),
        ([0.5], ["atention"], "no selector 'atention'"),
        ([0.5], ["attention", "random", "attention"], "selector attention is given 2 times"),
        ([0.5], ["attention", "oracle"], "Give --labels"),
    ],
)
def test_what_can_not_be_asked(pipe: Pipeline, keeps: list[float], selectors: list[str], part: str) -> None:
    with pytest.raises(RequestError) as caught:
        evaluate(pipe, SAMPLES, keeps, selectors)
    assert part in str(caught.value)


def test_labels_without_their_selector(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="drop --labels"):
        evaluate(pipe, SAMPLES, [0.5], ["attention"], oracle={})


def test_no_samples(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="no samples"):
        evaluate(pipe, [], [0.5], ["attention"])


def test_answers_are_those_of_generate(pipe: Pipeline) -> None:
    plan = Plan.make(KEEPS, SELECTORS, max_new_tokens=2)
    for record in ask(pipe, SAMPLES[:3], plan):
        sample = SAMPLES[record.number]
        asked = [(reply.selector, reply.keep) for reply in record.replies]
        assert asked == [("all", 1.0), *((name, keep) for name in SELECTORS for keep in KEEPS[1:])]
        for reply in record.replies:
            select = None if reply.selector == "all" else reply.selector
            request = Request.ask(sample.question, sample.image, keep=reply.keep, select=select, max_new_tokens=2)
            answer = pipe.generate(request)
            assert reply.text == answer.text
            assert reply.right == sample.answered_by(answer.text)
            assert reply.kept_tokens == len(answer.selection.keep_indices)


def test_every_sample_is_asked_once_per_selector_and_keep_ratio(pipe: Pipeline) -> None:
    counts: Counter[int] = Counter()
    steps: list[tuple[int, int]] = []

    def counted(relevance: Relevance, count: int) -> np.ndarray:
        counts[count] += 1
        return last_tokens(relevance, count)

    results = evaluate(
        pipe, SAMPLES[:2], [0.1, 0.5], ["counted"], custom={"counted": counted}, progress=lambda *step: steps.append(step)
    )
    assert sum(counts.values()) == 4
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert results.keeps == (0.5, 0.1)
    assert [(row.keep, row.questions) for row in results.overall.rows] == [(0.5, 2), (0.1, 2)]


def test_the_vision_graph_runs_once_for_questions_in_a_row_about_one_image(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[np.ndarray] = []

    def vision(prepared: Prepared) -> np.ndarray:
        images.append(prepared.visuals[0].feeds["pixel_values"])
        return Pipeline.vision(pipe, prepared)

    first, second, other = SAMPLES[:3]
    assert first.image == second.image != other.image
    monkeypatch.setattr(pipe, "vision", vision)
    evaluate(pipe, [first, second, other, first], [0.5], ["attention"])
    of_first, of_other, again = images
    assert not np.array_equal(of_first, of_other)
    np.testing.assert_array_equal(of_first, again)


def test_visual_embeds_of_another_image_are_refused(pipe: Pipeline) -> None:
    request = Request.ask(SAMPLES[0].question, SAMPLES[0].image)
    embeds = pipe.encode(request).visual_embeds
    with pytest.raises(RequestError, match="Give those of the same images"):
        pipe.encode(request, embeds[1:])


@pytest.fixture(scope="module")
def results(pipe: Pipeline) -> Results:
    return evaluate(pipe, SAMPLES, KEEPS, ["attention", "last"], custom={"last": last_tokens})


def test_figures_are_those_of_the_answers(results: Results) -> None:
    whole, rows = results.overall.whole, {(row.selector, row.keep): row for row in results.overall.rows}
    assert whole.right == whole.whole_right == 12  # the reference checkpoint knows these answers
    assert whole.retained == Estimate(1.0, 1.0, 1.0)
    first, last = rows["attention", 0.05], rows["last", 0.05]
    assert last.accuracy == wilson(last.right, 12)
    assert last.retained is not None
    assert last.retained.value == last.right / 12
    assert last.difference_points is not None
    assert last.difference_points.value == pytest.approx(100 * (last.right - first.right) / 12)
    assert last.right < first.right  # the last twentieth of a scene does not hold the answers
    assert first.difference_points is None
    assert whole.kept_tokens > rows["last", 0.25].kept_tokens > last.kept_tokens


def test_types_add_up_to_the_whole(results: Results) -> None:
    assert [group.type for group in results.types] == list(dict.fromkeys(sample.type for sample in SAMPLES))
    for index, row in enumerate(results.overall.rows):
        of_types = [group.rows[index] for group in results.types]
        assert {(part.selector, part.keep) for part in of_types} == {(row.selector, row.keep)}
        assert sum(part.questions for part in of_types) == row.questions
        assert sum(part.right for part in of_types) == row.right


def test_tables_have_every_figure(results: Results) -> None:
    overall, accuracy, kept = tables(results)
    assert [row[:2] for row in overall.rows] == [
        *[("1", "all"), ("0.25", "attention"), ("0.25", "last"), ("0.05", "attention"), ("0.05", "last")],
    ]
    assert {len(row) for table in (overall, accuracy, kept) for row in table.rows} == {7, 2 + len(results.types)}
    assert all(len(row) == len(table.columns) for table in (overall, accuracy, kept) for row in table.rows)


def test_samples_without_types_are_one_group(pipe: Pipeline) -> None:
    plain = [msgspec.structs.replace(sample, type="") for sample in SAMPLES[:2]]
    results = evaluate(pipe, plain, [0.5], ["attention"])
    (group,) = results.types
    assert group.rows == results.overall.rows
    assert len(tables(results)) == 1


def test_a_retention_curve_for_the_manifest(results: Results) -> None:
    rows = [row for row in results.overall.rows if row.selector == "last"]
    points = retention_curve(results, "last")
    assert [(point.keep, point.retained, point.questions) for point in points] == [
        (row.keep, row.retained.value, 12) for row in rows if row.retained
    ]
    with pytest.raises(RequestError, match=r"'learned'.*attention, last"):
        retention_curve(results, "learned")


def test_nothing_right_at_keep_1_retains_nothing(pipe: Pipeline) -> None:
    wrong = [msgspec.structs.replace(sample, answer="a cat") for sample in SAMPLES[:3]]
    results = evaluate(pipe, wrong, [0.5], ["attention"])
    assert results.overall.rows[0].retained is None
    assert tables(results)[0].rows[1][5] == "-"
    with pytest.raises(RequestError, match="no answer of 3 was right"):
        retention_curve(results, "attention")


# The oracle


def attention_of(pipe: Pipeline, sample: Sample) -> np.ndarray:
    request = Request.ask(sample.question, sample.image)
    encoded = pipe.encode(request)
    relevance = pipe.score(encoded.prepared, encoded.visual_embeds)
    assert relevance.attention is not None
    return relevance.attention


def test_the_oracle_chooses_by_its_labels_where_there_are_any(pipe: Pipeline) -> None:
    oracle = {number: attention_of(pipe, SAMPLES[number]) for number in (0, 3, 6, 9)}
    plan = Plan.make([0.05], ["last", "attention", "oracle"], {"last": last_tokens}, oracle)
    records = list(ask(pipe, SAMPLES, plan))
    texts = [{reply.selector: reply.text for reply in record.replies} for record in records]
    assert [number for number, answered in enumerate(texts) if "oracle" in answered] == [0, 3, 6, 9]
    assert all(answered["oracle"] == answered["attention"] for answered in texts[::3])

    results = summarise(SAMPLES, records, plan)
    _, _, row = results.overall.rows
    assert (row.selector, row.questions, row.whole_right, results.unlabelled) == ("oracle", 4, 4, 8)
    last_right = sum(record.replies[1].right for record in records[::3])
    assert row.difference_points is not None
    assert row.difference_points.value == pytest.approx(25 * (row.right - last_right))
    assert "8 of 12 questions have no label" in remark(results)
    assert any(not any(row.selector == "oracle" for row in group.rows) for group in results.types)


def test_an_oracle_without_any_label_has_no_rows(pipe: Pipeline) -> None:
    results = evaluate(pipe, SAMPLES[:2], [0.5], ["attention", "oracle"], oracle={})
    assert [row.selector for row in results.overall.rows] == ["attention"]
    assert results.unlabelled == 2


def test_labels_of_another_image_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="labels of this very sample"):
        evaluate(pipe, SAMPLES, [0.5], ["oracle"], oracle={0: np.ones(3, np.float32)})


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
    assert_one_clear_line(result, "labels_sha256 was", "--force")
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
    assert_one_clear_line(result, "drop --labels")


def test_a_missing_safetensors_names_its_extra(
    run: Run, bundle: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "foveate.exporter.scorer.store", raising=False)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    result = run("evaluate", bundle, SCENES, *WITH_LABELS, "--labels", labels, "-o", tmp_path / "report")
    assert_one_clear_line(result, "'safetensors' is not installed", "pip install 'foveate[export]'")


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
    assert_one_clear_line(run("evaluate", bundle, SCENES, *options, "-o", report), part, "--force", "another folder")
    assert contents(report) == before


def test_other_questions_and_another_bundle_are_another_run(run: Run, bundle: Path, report: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(SCENES, tmp_path / "data"))
    (data / "questions.jsonl").write_bytes((data / "questions.jsonl").read_bytes() + b"\n")
    assert_one_clear_line(run("evaluate", bundle, data, *OPTIONS, "-o", report), "questions_sha256 was")
    other = Path(shutil.copytree(bundle, tmp_path / "other.bundle"))
    (other / "manifest.json").write_bytes((other / "manifest.json").read_bytes() + b"\n")
    assert_one_clear_line(run("evaluate", other, SCENES, *OPTIONS, "-o", report), "bundle_sha256 was")


def test_force_starts_anew(run: Run, bundle: Path, report: Path) -> None:
    (report / ANSWERS).write_text("not a run\n")
    options = ("--keep", "0.5", "--select", "attention", "-o", report)
    assert_one_clear_line(run("evaluate", bundle, SCENES, *options), "line 1", "--force")
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
    assert_one_clear_line(run("evaluate", bundle, SCENES, *OPTIONS, "-o", report), part, "--force")
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
        (("--select", "attention,astrology"), "no selector 'astrology'"),
        (("--select", "attention,attention"), "given 2 times"),
        (("--select", "oracle"), "Give --labels"),
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
    assert_one_clear_line(result, "report.md exists", "--force")
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
    assert_one_clear_line(run("evaluate", bundle, SCENES, "-o", tmp_path / "report"), "pip install 'foveate[report]'")
    assert list(tmp_path.iterdir()) == []


# The chart


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_labels_are_moved_apart_and_keep_their_order(values: list[float], gap: float) -> None:
    places = spread(values, gap)
    order = np.argsort(values, kind="stable")
    assert (np.diff(places[order]) >= gap - 1e-9).all()
    assert places.mean() == pytest.approx(np.mean(values))


def test_labels_that_do_not_touch_stay() -> None:
    assert spread([0.9, 0.1, 0.5], 0.2).tolist() == pytest.approx([0.9, 0.1, 0.5])
    assert spread([0.5, 0.5, 0.1], 0.2).tolist() == pytest.approx([0.4, 0.6, 0.1])


@pytest.mark.parametrize("count", [1, 14])
def test_a_chart_of_any_number_of_lines(count: int) -> None:
    keeps = (1.0, 0.95, 0.9, 0.5, 0.01)
    curves = [Curve(f"selector {index}", keeps, [1 - index / 20] * 5, [0.0] * 5, [1.0] * 5) for index in range(count)]
    picture = Image.open(io.BytesIO(accuracy_chart(curves, 1.0, {keep: f"{keep:.0%}" for keep in keeps})))
    colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7]}
    assert len(colours) > 20

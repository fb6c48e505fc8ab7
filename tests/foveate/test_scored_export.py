"""A trained scorer in a bundle: parity, its record in the manifest, the retention curve, and scorers that do not belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import Result

import foveate
from foveate.engines import Bundle, SessionOptions, hash_file
from foveate.exporter import ExportResult
from foveate.exporter.scorer import NetworkConfig, Scorer, ScorerFacts, read_scorer, write_scorer
from foveate.samples import read_samples
from tests.foveate.conftest import CHECKPOINT, SCENES, Run
from tests.foveate.test_cli import assert_one_clear_line

SCORER = CHECKPOINT / "scorer.safetensors"
QUESTION = "What colour is the circle?"
SCENE = SCENES / "images" / "000004.png"

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def calibrated(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What `foveate export` says about the reference checkpoint with its scorer, calibrated on the demo's questions."""
    output = tmp_path_factory.mktemp("bundle") / "scored.bundle"
    return run("export", CHECKPOINT, "-o", output, "--scorer", SCORER, "--calibrate", SCENES, "--no-check")


@pytest.fixture(scope="module")
def scored(calibrated: Result) -> Path:
    """The bundle. Not to be changed."""
    assert calibrated.exit_code == 0, calibrated.stderr
    return Path(calibrated.stdout.strip())


@pytest.fixture(scope="module")
def pipe(scored: Path) -> foveate.Pipeline:
    return foveate.load(scored, options=SessionOptions(threads=1))


@pytest.fixture
def make_scorer(tmp_path: Path) -> Make:
    """Writes a random scorer; `facts` change what its file says."""

    def make(network: NetworkConfig, **changes: object) -> Path:
        torch.manual_seed(0)
        _, facts = read_scorer(SCORER)
        facts = msgspec.structs.replace(facts, network=network, **changes)
        write_scorer(tmp_path / "scorer.safetensors", Scorer(network, facts.heads), facts)
        return tmp_path / "scorer.safetensors"

    return make


@pytest.mark.parametrize("network", [NetworkConfig(width=8, depth=2), NetworkConfig("sequence", ("attention",), depth=2)])
def test_the_score_graph_agrees_with_the_network(make_scorer: Make, network: NetworkConfig, tmp_path: Path) -> None:
    result: ExportResult = foveate.export(CHECKPOINT, tmp_path / "x.bundle", foveate.ExportOptions(scorer=make_scorer(network)))
    assert result.parity is not None
    rows = [row for row in result.parity.rows if row.output == "scores"]
    assert [row.case for row in rows] == ["one image", "two images"]
    assert all(row.passed for row in rows)
    inputs = [tensor.name for tensor in Bundle.open(result.bundle).graph("score").inputs]
    assert ("neighbour_indices" in inputs) == (network.kind == "grid")


def test_the_manifest_records_the_scorer(scored: Path) -> None:
    entry = Bundle.open(scored).manifest.scorer
    assert (entry.kind, entry.sha256, entry.default_selector) == ("trained", hash_file(SCORER), "foveated")
    assert [point.keep for point in entry.curve()] == [0.75, 0.5, 0.375, 0.25, 0.125]
    assert {point.questions for point in entry.curve()} == {len(read_samples(SCENES))}
    assert all(0 <= point.low <= point.retained <= point.high for point in entry.retention)


def test_what_stays_behind_a_part_of_the_tower_is_measured_where_it_saw_a_part(
    run: Run, scored: Path, calibrated: Result
) -> None:
    entry = Bundle.open(scored).manifest.scorer
    assert entry.encodes == (0.25, 0.5)
    assert [point.keep for point in entry.curve(0.5)] == [0.5, 0.375, 0.25, 0.125]
    assert [point.keep for point in entry.curve(0.25)] == [0.25, 0.125]
    (questions,) = {point.questions for encode in entry.encodes for point in entry.curve(encode)}
    everything = len(read_samples(SCENES))
    assert 0 < questions < everything
    assert f"the tower saw everything for {everything - questions} of {everything} questions" in calibrated.stderr
    shown = run("inspect", scored).stdout
    assert f"with encode 0.25: {100 * entry.curve(0.25)[0].stay:.1f} % at keep 0.25, " in shown
    facts = json.loads(run("inspect", scored, "--json").stdout)
    assert list(facts["retained_encoded"]) == ["0.5", "0.25"]
    assert len(facts["retained"]) == 5


def test_the_fovea_of_the_learned_scores_is_the_default(pipe: foveate.Pipeline) -> None:
    request = foveate.Request.ask(QUESTION, SCENE, keep=0.25)
    answer = pipe.generate(request)
    assert answer.selection.selector == "foveated"
    assert answer.selection.scores is not None
    assert answer.selection.scores.sum() == pytest.approx(1, abs=1e-4)
    attention = pipe.generate(foveate.Request.ask(QUESTION, SCENE, keep=0.25, select="attention"))
    assert not np.array_equal(attention.selection.keep_indices, answer.selection.keep_indices)


def test_images_of_several_sizes_are_scored_together(pipe: foveate.Pipeline) -> None:
    images = [SCENES / "images" / f"00000{number}.png" for number in (4, 1)]
    answer = pipe.generate(foveate.Request.ask(QUESTION, images, keep=0.5))
    assert answer.grids[0] != answer.grids[1]
    assert answer.selection.scores is not None
    assert len(answer.selection.scores) == sum(map(prod, answer.grids))


def test_a_floor_does_not_trust_a_curve_of_few_questions(run: Run, scored: Path) -> None:
    ask = ("generate", scored, "-i", SCENE, QUESTION, "--max-new-tokens", 4)
    assert_one_clear_line(run(*ask, "--keep", 0.5, "--min-retained", 0.5), "measured with 12 questions, expected at least 100")
    assert run(*ask, "--keep", 1, "--min-retained", 1).exit_code == 0
    part = run(*ask, "--encode", 0.5, "--min-retained", 0.5)
    assert_one_clear_line(part, "curve with encode 0.5 was measured with", "expected at least 100")


def test_a_scorer_of_other_heads_is_refused(run: Run, make_scorer: Make, tmp_path: Path) -> None:
    scorer = make_scorer(NetworkConfig(width=8), heads=12)
    result = run("export", CHECKPOINT, "-o", tmp_path / "x.bundle", "--scorer", scorer)
    assert_one_clear_line(result, "12 attention heads", "has 4", "foveate scorer label")
    assert not (tmp_path / "x.bundle").exists()


def test_a_scorer_of_another_checkpoint_is_refused(run: Run, make_scorer: Make, tmp_path: Path) -> None:
    scorer = make_scorer(NetworkConfig(width=8), checkpoint="other", checkpoint_sha256="0" * 64)
    result = run("export", CHECKPOINT, "-o", tmp_path / "x.bundle", "--scorer", scorer)
    assert_one_clear_line(result, "another checkpoint, 'other'", "foveate scorer label")
    assert not (tmp_path / "x.bundle").exists()


def test_what_is_no_scorer_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("export", CHECKPOINT, "-o", tmp_path / "x.bundle", "--scorer", CHECKPOINT / "model.safetensors")
    assert_one_clear_line(result, "is not a scorer", "foveate scorer train")


def test_a_broken_calibration_leaves_the_older_bundle(run: Run, scored: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("{\n")
    before = hash_file(scored / "manifest.json")
    result = run("export", CHECKPOINT, "-o", scored, "--force", "--calibrate", tmp_path, "--no-check")
    assert_one_clear_line(result, "questions.jsonl, line 1")
    assert hash_file(scored / "manifest.json") == before


def test_the_facts_of_a_file_are_those_of_its_training() -> None:
    scorer, facts = read_scorer(SCORER)
    assert isinstance(facts, ScorerFacts)
    assert facts.checkpoint == CHECKPOINT.name
    assert sum(parameter.numel() for parameter in scorer.parameters()) <= 300_000

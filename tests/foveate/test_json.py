"""`--json` of every command: what comes out is what docs/json.md says, and nothing else is on standard output."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import Result

from benchmarks.documents import BEGIN, PAGE, lines
from benchmarks.pages import write_between
from foveate import Pipeline
from foveate.cli.demo import _facts
from foveate.cli.documents import DOCUMENTS, Demonstrated, Exported, find_document
from foveate.demo import run as run_demo
from foveate.samples import read_samples
from tests.exporter.scorer.synthetic import make_labels, write_labels
from tests.foveate.conftest import CHECKPOINT, ROOT, SCENES, Run
from tests.foveate.test_cli import SCENE, assert_one_clear_line
from tests.foveate.test_options import COMMANDS


def read(command: str, content: str | bytes) -> msgspec.Struct:
    """The document, held against its class: a field too many, one too few or one of another type is an error."""
    document = msgspec.json.decode(content, type=find_document(command), strict=True)
    assert json.loads(content)["schema"] == f"foveate.{command.replace(' ', '.')}.1"
    return document


def printed(command: str, result: Result) -> msgspec.Struct:
    assert result.exit_code == 0, result.stderr
    return read(command, result.stdout)


def test_every_command_has_a_document() -> None:
    assert set(DOCUMENTS) == set(COMMANDS)
    for command in COMMANDS.values():
        assert any("--json" in parameter.opts for parameter in command.params)


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    """`python -m benchmarks.documents` writes it."""
    page = tmp_path / PAGE.name
    page.write_text((ROOT / PAGE).read_text())
    write_between(page, BEGIN, lines())
    assert page.read_text() == (ROOT / PAGE).read_text()


def test_export(exported: Result, bundle: Path) -> None:
    document = read("export", (bundle.parent / "export.json").read_bytes())
    assert isinstance(document, Exported)
    assert document.bundle == exported.stdout.strip() == str(bundle)
    assert document.parity
    assert all(row.difference <= row.tolerance for row in document.parity)


def test_build_and_inspect(run: Run, bundle: Path, tmp_path: Path) -> None:
    build = ("build", bundle, "--backend", "onnxruntime", "--engines", tmp_path / "engines", "--json")
    facts = msgspec.to_builtins(printed("build", run(*build)))
    assert (facts["fresh"], len(facts["engines"])) == (2, 2)
    assert msgspec.to_builtins(printed("build", run(*build)))["fresh"] == 0
    inspected = msgspec.to_builtins(printed("inspect", run("inspect", bundle, "--engines", tmp_path / "engines", "--json")))
    assert sorted(engine["path"] for engine in inspected["engines"]) == sorted(engine["path"] for engine in facts["engines"])


def test_check(run: Run, bundle: Path) -> None:
    check = ("check", bundle, "--backend", "onnxruntime")
    assert msgspec.to_builtins(printed("check", run(*check, "--json", "-")))["passed"]
    failed = run(*check, "--min-cosine", "1.1", "--json", "-")
    assert failed.exit_code == 2
    assert not msgspec.to_builtins(read("check", failed.stdout))["passed"]


@pytest.mark.parametrize("form", [("--json",), ("--json", "-"), ("--json=-",)])
def test_generate(run: Run, bundle: Path, form: tuple[str, ...]) -> None:
    result = run("generate", bundle, "-i", SCENE, "What colour is the circle?", "--keep", "0.5", *form)
    assert msgspec.to_builtins(printed("generate", result))["text"] == "purple"
    assert result.stderr == ""


def test_a_file_stands_beside_what_is_always_printed(run: Run, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "answer.json"
    file.write_text("older")
    result = run("generate", bundle, "-i", SCENE, "What colour is the circle?", "--json", file)
    assert result.stdout == "purple\n"
    assert msgspec.to_builtins(read("generate", file.read_bytes()))["text"] == "purple"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("name", "fact"), [("no/answer.json", "in a folder that does not exist"), (".", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_first(run: Run, tmp_path: Path, name: str, fact: str) -> None:
    assert_one_clear_line(run("inspect", "no.bundle", "--json", tmp_path / name), "--json is", fact)


def test_profile(run: Run, bundle: Path) -> None:
    small = ("--image-size", "224x224", "--keep", "0.5", "--repeats", "1", "--no-memory", "--concurrency", "1")
    document = printed("profile", run("profile", bundle, *small, "--json"))
    assert [run["keep"] for run in msgspec.to_builtins(document)["keeps"]] == [1.0, 0.5]


def test_evaluate_with_the_bundles_own_selectors(run: Run, bundle: Path, tmp_path: Path) -> None:
    """This bundle has no scorer: `foveated` can't be among the selectors that are asked where none is named."""
    result = run("evaluate", bundle, SCENES, "--keep", "0.5", "-o", tmp_path / "report", "--json")
    printed("evaluate", result)
    document = json.loads(result.stdout)
    assert document["results"]["selectors"] == ["attention", "random"]
    report = json.loads((tmp_path / "report" / "report.json").read_bytes())
    assert document["results"] == report["results"]
    assert document["run"] == report["run"]


def test_label_and_train(run: Run, tmp_path: Path) -> None:
    label = run("scorer", "label", CHECKPOINT, SCENES, "-o", tmp_path / "labels", "--limit", 2, "--json")
    assert msgspec.to_builtins(printed("scorer label", label))["seen"] == 2
    write_labels(tmp_path / "synthetic", make_labels(40))
    train = run("scorer", "train", tmp_path / "synthetic", "-o", tmp_path / "s.safetensors", "--epochs", 2, "--json")
    document = msgspec.to_builtins(printed("scorer train", train))
    assert len(document["epochs"]) == 2
    assert Path(document["learning_curve"]).is_file()


def test_demo(bundle: Path, pipe: Pipeline, tmp_path: Path) -> None:
    outcomes = run_demo(bundle, read_samples(SCENES)[:1], tmp_path / "out", lambda step: None)
    document = Demonstrated(bundle=str(bundle), report="report.html", questions=tuple(map(_facts, outcomes)))
    assert read("demo", msgspec.json.encode(document)) == document

"""`foveate scorer` on the reference checkpoint: labels, killed runs, training, and one clear line for bad input."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tokenizers import Tokenizer

import foveate
from foveate.charts import learning_curve
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.scorer import Label, read_header, read_labels, read_scorer
from foveate.samples import read_samples
from foveate.scorer import Loader
from tests.exporter.scorer.synthetic import make_labels, write_labels
from tests.foveate.conftest import CHECKPOINT, SCENES, Run
from tests.foveate.test_cli import assert_one_clear_line

WRONG = (3, 8)
"""Samples of `data` whose answer in the file is another than the model's."""


def read_lines(data: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]


def write_lines(data: Path, lines: Sequence[Mapping[str, str]]) -> None:
    (data / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds but for temporary files."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's scenes with two answers that the model does not give. Not to be changed."""
    copy = Path(shutil.copytree(SCENES, tmp_path_factory.mktemp("data") / "scenes"))
    lines = read_lines(copy)
    for number in WRONG:
        lines[number]["answer"] = "something else"
    write_lines(copy, lines)
    return copy


@pytest.fixture
def data_copy(data: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.fixture(scope="module")
def labelled(run: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run("scorer", "label", CHECKPOINT, data, "-o", tmp_path_factory.mktemp("labels") / "labels", "--shard-size", 2)


@pytest.fixture(scope="module")
def labels(labelled: Result) -> Path:
    """The labels of `data` in six shards. Not to be changed."""
    assert labelled.exit_code == 0, labelled.stderr
    return Path(labelled.stdout.strip())


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels without a model. Not to be changed."""
    return write_labels(tmp_path_factory.mktemp("synthetic") / "labels", make_labels(40))


def assert_same(one: Label, other: Label) -> None:
    assert (one.sample, one.image, one.correct, one.grids) == (other.sample, other.image, other.correct, other.grids)
    np.testing.assert_array_equal(one.features, other.features)
    np.testing.assert_array_equal(one.relevance, other.relevance)


# Labels


def test_right_answers_are_labelled(labelled: Result, labels: Path, data: Path) -> None:
    assert labelled.stderr == "10 of 12 samples labelled in this run\n"
    found = list(read_labels(labels))
    assert [label.sample for label in found] == [number for number in range(12) if number not in WRONG]
    assert all(label.correct for label in found)
    assert all(label.relevance.max() > 3 * label.relevance.mean() > 0 for label in found)
    images = [sample.image for sample in read_samples(data)]
    assert [label.image for label in found] == [images.index(images[label.sample]) for label in found]


def test_wrong_answers_are_labelled_when_asked_for(run: Run, labels: Path, data: Path, tmp_path: Path) -> None:
    result = run("scorer", "label", CHECKPOINT, data, "-o", tmp_path / "labels", "--wrong")
    assert result.stderr == "12 of 12 samples labelled in this run\n"
    every = list(read_labels(tmp_path / "labels"))
    assert [label.sample for label in every if not label.correct] == list(WRONG)
    for one, other in zip([label for label in every if label.correct], read_labels(labels), strict=True):
        assert_same(one, other)


def test_the_features_are_the_attention_of_the_deployed_graph(labels: Path, data: Path, bundle: Path) -> None:
    pipe = foveate.load(bundle, verify=False)
    samples = read_samples(data)
    for label in list(read_labels(labels))[::3]:
        sample = samples[label.sample]
        prepared = pipe.prepare(foveate.Request.ask(sample.question, sample.image))
        attention = pipe.score(prepared, pipe.vision(prepared)).attention
        assert attention is not None
        assert label.grids == tuple(prepared.grids)
        np.testing.assert_allclose(label.features[0], attention * len(attention), rtol=1e-3, atol=1e-4)


def test_prompts_are_those_of_the_deployed_model(data: Path, bundle: Path) -> None:
    pipe, load = foveate.load(bundle, verify=False), Loader(read_samples(data), CHECKPOINT)
    sample = read_samples(data)[5]
    prepared = pipe.prepare(foveate.Request.ask(sample.question, sample.image))
    example = load(read_family(Checkpoint.open(CHECKPOINT)), 5)
    np.testing.assert_array_equal(example.input_ids, prepared.layout.input_ids)
    np.testing.assert_array_equal(example.position_ids, prepared.layout.position_ids)
    np.testing.assert_array_equal(example.visual_indices, prepared.layout.visual_indices)
    np.testing.assert_array_equal(example.instruction_indices, prepared.instruction_indices)
    assert [sorted(visual) for visual in example.visuals] == [["patch_positions", "pixel_values"]]
    for name, array in example.visuals[0].items():
        np.testing.assert_array_equal(array, prepared.visuals[0].feeds[name])
    assert example.next_position == prepared.layout.next_position
    assert example.grids == prepared.grids
    encode = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode
    assert example.is_right(encode(sample.answer).ids)
    assert not example.is_right(encode("circle").ids)


def test_how_relevance_is_computed_is_the_users_choice(run: Run, labels: Path, data: Path, tmp_path: Path) -> None:
    options = ("--objective", "logit", "--contribution", "positive", "--limit", 3)
    run("scorer", "label", CHECKPOINT, data, "-o", tmp_path / "paper", *options)
    header, ours = read_header(tmp_path / "paper"), {label.sample: label for label in read_labels(labels)}
    assert (header.objective, header.contribution) == ("logit", "positive")
    for label in read_labels(tmp_path / "paper"):
        np.testing.assert_array_equal(label.features, ours[label.sample].features)
        assert not np.allclose(label.relevance, ours[label.sample].relevance, rtol=0.1)


def test_a_limit_draws_by_the_seed(run: Run, labels: Path, data: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 2):
        result = run("scorer", "label", CHECKPOINT, data, "-o", tmp_path / str(seed), "--limit", 4, "--seed", seed)
        assert "of 4 samples" in result.stderr
        drawn.append(read_header(tmp_path / str(seed)).samples)
        assert len(drawn[-1]) == 4
        assert list(drawn[-1]) == sorted(set(drawn[-1]))
    assert drawn[0] != drawn[1]
    whole = {label.sample: label for label in read_labels(labels)}
    for label in read_labels(tmp_path / "1"):
        assert_same(label, whole[label.sample])


KILLED = """
import os, signal
from foveate.cli import main

def replace(source, target, replace=os.replace):
    if os.path.basename(target) == "shard-00002.safetensors":
        os.truncate(source, 100)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace
main()
"""
"""`foveate`, killed when the third shard is half written."""


def test_a_killed_run_goes_on_and_gives_the_same_bytes(run: Run, labels: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["scorer", "label", CHECKPOINT, data, "-o", tmp_path / "labels", "--shard-size", 2]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(files(tmp_path / "labels")) == ["labels.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    assert [path.stat().st_size for path in (tmp_path / "labels").glob(".*.tmp")] == [100]
    assert_one_clear_line(
        run("scorer", "train", tmp_path / "labels", "-o", tmp_path / "scorer.safetensors"), "is not finished", "goes on"
    )
    result = run(*arguments)
    assert result.stderr == "7 of 8 samples labelled in this run\n"
    assert files(tmp_path / "labels") == files(labels)


def test_a_finished_folder_is_left_as_it_is(run: Run, labels: Path, data: Path) -> None:
    before = files(labels)
    result = run("scorer", "label", CHECKPOINT, data, "-o", labels, "--shard-size", 2)
    assert (result.exit_code, result.stderr) == (0, "0 of 0 samples labelled in this run\n")
    assert files(labels) == before


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--objective", "logit"), "objective"),
        (("--contribution", "positive"), "contribution"),
        (("--wrong",), "wrong"),
        (("--limit", 3), "samples"),
        (("--max-new-tokens", 4), "max_new_tokens"),
        (("--shard-size", 3), "shard_size"),
    ],
)
def test_other_options_into_the_same_folder(
    run: Run, labels: Path, data: Path, options: tuple[object, ...], field: str
) -> None:
    before = files(labels)
    result = run("scorer", "label", CHECKPOINT, data, "-o", labels, "--shard-size", 2, *options)
    assert_one_clear_line(result, f"was labelled with another '{field}'", "Choose another folder")
    assert files(labels) == before


def test_another_checkpoint_or_other_data_into_the_same_folder(run: Run, labels: Path, data: Path, tmp_path: Path) -> None:
    before = files(labels)
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / CHECKPOINT.name))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config))  # other bytes
    for model, questions, field in ((checkpoint, data, "checkpoint_sha256"), (CHECKPOINT, SCENES, "data_sha256")):
        result = run("scorer", "label", model, questions, "-o", labels, "--shard-size", 2)
        assert_one_clear_line(result, f"was labelled with another '{field}'", "Choose another folder")
    assert files(labels) == before


# Data and checkpoints that can't be labelled


def _break_a_line(data: Path) -> None:
    lines = (data / "questions.jsonl").read_text().splitlines()
    lines[6] = lines[6][:-10]
    (data / "questions.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (_break_a_line, ("questions.jsonl, line 7: ",)),
        (lambda data: (data / "questions.jsonl").write_text("\n"), ("questions.jsonl is empty",)),
        (lambda data: (data / "questions.jsonl").unlink(), ("questions.jsonl does not exist",)),
        (lambda data: (data / "images" / "000003.png").unlink(), ("line 7: ", "000003.png", "does not exist")),
    ],
    ids=["broken line", "empty", "no questions", "no image"],
)
def test_broken_data_is_refused_before_anything_is_written(
    run: Run, data_copy: Path, tmp_path: Path, damage: Callable[[Path], object], parts: tuple[str, ...]
) -> None:
    damage(data_copy)
    assert_one_clear_line(run("scorer", "label", CHECKPOINT, data_copy, "-o", tmp_path / "labels"), *parts)
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (shutil.rmtree, ("is not a folder",)),
        (lambda folder: (folder / "tokenizer.json").unlink(), ("has no tokenizer.json",)),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ("tokenizer.json is not a tokenizer",)),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), ("model.safetensors",)),
    ],
    ids=["no folder", "no tokenizer", "broken tokenizer", "broken weights"],
)
def test_a_checkpoint_that_cannot_be_read(
    run: Run, tmp_path: Path, damage: Callable[[Path], object], parts: tuple[str, ...]
) -> None:
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    damage(checkpoint)
    assert_one_clear_line(run("scorer", "label", checkpoint, SCENES, "-o", tmp_path / "labels"), *parts)
    assert not (tmp_path / "labels").exists()


def test_a_broken_image_stops_the_run_and_a_repaired_one_goes_on(
    run: Run, labels: Path, data_copy: Path, tmp_path: Path
) -> None:
    image = data_copy / "images" / "000003.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:1000])
    arguments = ("scorer", "label", CHECKPOINT, data_copy, "-o", tmp_path / "labels", "--shard-size", 2)
    assert_one_clear_line(run(*arguments), "000003.png")
    train = ("scorer", "train", tmp_path / "labels", "-o", tmp_path / "scorer.safetensors")
    assert_one_clear_line(run(*train), "is not finished")
    image.write_bytes(whole)
    assert run(*arguments).exit_code == 0
    assert files(tmp_path / "labels") == files(labels)


def test_a_model_that_answers_nothing_right(run: Run, data_copy: Path, tmp_path: Path) -> None:
    write_lines(data_copy, [line | {"answer": "something else"} for line in read_lines(data_copy)[:3]])
    arguments = ("scorer", "label", CHECKPOINT, data_copy, "-o", tmp_path / "labels")
    for _ in range(2):
        assert_one_clear_line(run(*arguments), "answered none of 3 samples", str(data_copy), "foveate evaluate")
    train = ("scorer", "train", tmp_path / "labels", "-o", tmp_path / "scorer.safetensors")
    assert_one_clear_line(run(*train), "labels are of 0 images", "Label more samples")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--objective", "loss"), ("objective 'loss' is not known", "margin")),
        (("--limit", 0), ("limit is 0",)),
        (("--limit", 2, "--seed", -1), ("seed is -1",)),
    ],
)
def test_unusable_options_of_labelling(run: Run, tmp_path: Path, options: tuple[object, ...], parts: tuple[str, ...]) -> None:
    assert_one_clear_line(run("scorer", "label", CHECKPOINT, SCENES, "-o", tmp_path / "labels", *options), *parts)
    assert not (tmp_path / "labels").exists()


def test_an_output_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    result = run("scorer", "label", CHECKPOINT, SCENES, "-o", tmp_path / "notes.txt" / "labels")
    assert_one_clear_line(result, "can't be written", "Choose another folder")


# Training


def test_the_labels_train_a_scorer(run: Run, labels: Path, tmp_path: Path) -> None:
    result = run("scorer", "train", labels, "-o", tmp_path / "scorer.safetensors", "--epochs", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "scorer.safetensors")
    assert "samples, validation" in result.stderr
    assert sorted(files(tmp_path)) == ["scorer.png", "scorer.safetensors"]
    _, facts = read_scorer(tmp_path / "scorer.safetensors")
    header = read_header(labels)
    assert (facts.checkpoint, facts.checkpoint_sha256) == (CHECKPOINT.name, header.checkpoint_sha256)
    assert facts.heads == header.heads
    with Image.open(tmp_path / "scorer.png") as picture:
        assert picture.format == "PNG"


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["transformers", "onnxruntime", "tensorrt"]))
from foveate.cli import main
main()
"""


def test_training_needs_no_model(synthetic: Path, tmp_path: Path) -> None:
    arguments = ["scorer", "train", synthetic, "-o", tmp_path / "scorer.safetensors", "--epochs", 1]
    result = subprocess.run([sys.executable, "-c", WITHOUT, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    read_scorer(tmp_path / "scorer.safetensors")


def test_a_config_file_and_what_the_command_line_changes(run: Run, synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"epochs": 3, "seed": 4, "network": {"width": 8, "depth": 1}}')
    config = ("--config", tmp_path / "config.json")
    result = run("scorer", "train", synthetic, "-o", tmp_path / "scorer.safetensors", *config, "--epochs", 1, "--limit", 10)
    assert result.exit_code == 0, result.stderr
    _, facts = read_scorer(tmp_path / "scorer.safetensors")
    assert (facts.network.width, facts.network.depth) == (8, 1)
    assert (facts.training["epochs"], facts.training["seed"], facts.training["training_samples"]) == (1, 4, 10)


def test_a_scorer_that_exists_is_replaced_only_by_force(run: Run, synthetic: Path, tmp_path: Path) -> None:
    output = tmp_path / "scorer.safetensors"
    output.write_bytes(b"older")
    assert_one_clear_line(run("scorer", "train", tmp_path / "missing", "-o", output), "exists already", "--force")
    assert files(tmp_path) == {output.name: b"older"}
    assert run("scorer", "train", synthetic, "-o", output, "--force", "--epochs", 1).exit_code == 0
    read_scorer(output)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scorer.png", ("scorer.png", "expected a file that ends in .safetensors")),
        ("missing/scorer.safetensors", ("is in a folder that does not exist",)),
        ("folder.safetensors", ("folder.safetensors", "is a folder")),
    ],
)
def test_a_scorer_that_could_not_be_written(run: Run, tmp_path: Path, name: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    assert_one_clear_line(run("scorer", "train", tmp_path / "missing", "-o", tmp_path / name, "--force"), *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--epochs", 0), ("epochs is 0",)),
        (("--limit", 0), ("limit is 0",)),
        (("--seed", -1), ("seed is -1",)),
        (("--config", "missing.json"), ("--config is 'missing.json', which is no file",)),
    ],
)
def test_unusable_options_of_training(
    run: Run, synthetic: Path, tmp_path: Path, options: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    assert_one_clear_line(run("scorer", "train", synthetic, "-o", tmp_path / "scorer.safetensors", *options), *parts)
    assert not list(tmp_path.iterdir())


def test_labels_with_values_that_are_no_numbers(run: Run, tmp_path: Path) -> None:
    every = make_labels(6)
    every[4].relevance[2] = np.nan
    folder = write_labels(tmp_path / "labels", every)
    result = run("scorer", "train", folder, "-o", tmp_path / "scorer.safetensors")
    assert_one_clear_line(result, "shard-00000.safetensors, sample 4", "not finite", "Label again")
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_the_learning_curve_is_a_picture(epochs: int) -> None:
    losses = [(1 / (1 + epoch), 0.2 + 1 / (1 + epoch)) for epoch in range(epochs)]
    with Image.open(io.BytesIO(learning_curve(losses, epochs - 1))) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0xD6, 0x28, 0x39), (0x1D, 0x5F, 0xBF)} <= colours  # validation and training

"""Where a command ends before its work: what is wrong is said at once, and standard output may be full or gone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.cli.generate import figures
from foveate.runtime import Answer, Selection, Timings
from foveate.runtime.select import keep_everything
from tests.foveate.conftest import CHECKPOINT, SCENES, Run
from tests.foveate.test_cli import QUESTION, SCENE, assert_one_clear_line

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "matplotlib")
AT_ONCE = {
    ("export", "nowhere", "-o", "x.bundle"): "nowhere is not a folder",
    ("export", SCENES, "-o", "x.bundle"): "has no config.json",
    ("export", CHECKPOINT, "-o", SCENES, "--force"): "is not a bundle, so it will not be replaced",
    ("export", CHECKPOINT, "-o", SCENES): "exists already",
    ("export", CHECKPOINT, "-o", "x.bundle", "--precision", "fp8"): "precision 'fp8'",
    ("export", CHECKPOINT, "-o", "x.bundle", "--scorer", "no.safetensors"): "--scorer is 'no.safetensors'",
    ("export", CHECKPOINT, "-o", "x.bundle", "--calibrate", "nowhere"): "questions.jsonl",
    ("generate", "no.bundle", "-i", "no.png", "Hello"): "'no.png' is not there",
    ("generate", "no.bundle", "--video", "no.mp4", "Hello"): "'no.mp4' is not there",
    ("generate", "no.bundle", "Hello"): "no.bundle",
    ("generate", "no.bundle", "Hello", "--backend", "surprise"): "there is no backend 'surprise'",
    ("generate", "no.bundle", "-i", SCENE, "--keep", "0.5", "--select", "surprise"): "no selector 'surprise'",
    ("generate", "no.bundle", "Hello", "--temperature", "-1"): "temperature is -1.0",
    ("check", "no.bundle", "--backend", "onnxruntime", "-i", "no.png"): "'no.png' is not there",
    ("check", "no.bundle", "--backend", "onnxruntime", "--data", "nowhere"): "questions.jsonl",
    ("build", "no.bundle", "--backend", "onnxruntime"): "no.bundle",
    ("profile", "no.bundle", "--keep", "2"): "(--keep)",
    ("profile", "no.bundle", "-o", "nowhere/x.html"): "--output is 'nowhere/x.html'",
    ("profile", "no.bundle"): "no.bundle",
    ("profile", "no.bundle", "--image-size", "100000x100000"): "(--image-size)",
    ("bench", "http://127.0.0.1:9", "--keep", "2"): "(--keep)",
    ("bench", "http://127.0.0.1:9", "--csv", "nowhere/x.csv"): "--csv is 'nowhere/x.csv'",
    ("bench", "http://127.0.0.1:9", "--data", "nowhere"): "questions.jsonl",
    ("bench", "http://127.0.0.1:9"): "http://127.0.0.1:9 does not answer",
    ("bench", "ftp://x"): "'ftp://x' is no URL",
    ("evaluate", "no.bundle", SCENES, "-o", "out"): "no.bundle",
    ("scorer", "label", "nowhere", SCENES, "-o", "out"): "nowhere is not a folder",
    ("scorer", "label", CHECKPOINT, "nowhere", "-o", "out"): "questions.jsonl",
    ("scorer", "train", "nowhere", "-o", "x.safetensors"): "LABELS is 'nowhere'",
    ("scorer", "train", SCENES, "-o", "x.txt"): "ends in .safetensors",
    ("serve", "no.bundle"): "no.bundle",
    ("serve", "no.bundle", "a/no.bundle"): "two bundles are called 'no'",
    ("serve", "no.bundle", "--api-key-file", "no.txt"): "--api-key-file is 'no.txt'",
    ("serve", "no.bundle", "--allow-folder", "nowhere"): "--allow-folder is 'nowhere'",
    ("serve", "no.bundle", "--slots", "0"): "(--slots)",
    ("serve", "no.bundle", "--max-body", "0"): "(--max-body)",
    ("demo", "--data", "nowhere"): "(--data)",
    ("demo", "--checkpoint", "nowhere", "--data", SCENES): "nowhere is not a folder",
}
"""Words -> what the error says."""
LOOK = f"""
import contextlib, io, json, sys
from foveate.cli import main
found = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(words)
    found.append((said.getvalue(), [name for name in {HEAVY} if name in sys.modules]))
print(json.dumps(found))
"""


def test_what_needs_no_heavy_library_is_said_without_one(tmp_path: Path) -> None:
    lines = json.dumps([[str(word) for word in words] for words in AT_ONCE])
    done = subprocess.run([sys.executable, "-c", LOOK], input=lines, capture_output=True, text=True, cwd=tmp_path, check=True)
    for (words, part), (said, heavy) in zip(AT_ONCE.items(), json.loads(done.stdout), strict=True):
        assert part in said, words
        assert len(said.splitlines()) == 1, words
        assert heavy == [], words
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_no_memory_holds(run: Run, bundle: Path) -> None:
    refused = run("profile", bundle, "--image-size", "100000x100000")
    assert_one_clear_line(refused, "image_size is 100000 x 100000 pixels, the limit is", "(--image-size)")


def foveate(words: list[object], out: object, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from foveate.cli import main; main(prog_name='foveate')", *map(str, words)]
    return subprocess.run(call, stdout=out, stderr=subprocess.PIPE, text=True, cwd=tmp_path)  # type: ignore[call-overload]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--json"), ("generate", QUESTION)])
def test_standard_output_that_is_full(bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    command, *rest = words
    with Path("/dev/full").open("w") as full:
        done = foveate([command, bundle, *rest], full, tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("Error: standard output can't be written: No space left on device.")


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--json")])
def test_a_reader_that_went_away(bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    command, *rest = words
    call = [sys.executable, "-c", "from foveate.cli import main; main(prog_name='foveate')", command, str(bundle), *rest]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 128 + 13


def test_an_error_is_one_line_whatever_is_in_it(run: Run, tmp_path: Path) -> None:
    assert_one_clear_line(run("inspect", tmp_path / "two\nlines"), "two lines")


def test_the_stages_add_up_to_the_first_token() -> None:
    stages_ms = {"preprocess": 3.04, "vision": 250.26, "score": 10.14, "select": 0.96, "embed": 2.04, "prefill": 30.06}
    timings = Timings(**{f"{name}_ms": ms for name, ms in stages_ms.items()}, decode_ms=(20.0, 22.0))
    selection: Selection = keep_everything(160, "")
    line = figures(Answer("cat", (1, 2), "eos", selection, (), 200, timings, 4096))
    total, stages = re.search(r"first token ([\d.]+) ms \((.*?)\)", line).groups()  # type: ignore[union-attr]
    parts = {name: float(ms) for name, ms in (stage.split() for stage in stages.split(", "))}
    assert list(parts) == list(stages_ms)
    assert sum(parts.values()) == pytest.approx(float(total), abs=1e-9)
    assert float(total) == pytest.approx(timings.ttft_ms, abs=0.3)

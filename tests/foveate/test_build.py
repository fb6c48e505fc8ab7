"""`foveate build`, `inspect` and `check`: what they print, write and refuse."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from foveate.engines import BackendError
from foveate.engines.backends.tensorrt import builder
from foveate.engines.builds.build import BuildOptions, open_builder
from foveate.engines.builds.store import EngineKey, EngineStore
from foveate.engines.system.cpu import cpu_target
from tests.foveate.conftest import SCENES, Run
from tests.foveate.test_cli import assert_one_clear_line

RTX = ("--backend", "tensorrt-rtx", "--target", "sm89")
SMALL = ("--visual-tokens", "4:64:256")


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def test_build_and_inspect(run: Run, reference_bundle: Path, engines: Path) -> None:
    built = run("build", reference_bundle, *RTX, *SMALL, "--engines", engines)
    assert built.exit_code == 0, built.stderr
    *_, last = built.stdout.splitlines()
    assert Path(last) == engines
    rows = [line.split() for line in built.stdout.splitlines()[1:-1]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (graph, "sm89", "bf16") for graph in ("vision_standard", "score", "embed", "decoder_standard")
    ]
    again = run("build", reference_bundle, *RTX, *SMALL, "--engines", engines)
    assert again.stdout.count("(there)") == 4
    shown = run("inspect", reference_bundle, "--engines", engines, "--layers")
    assert shown.exit_code == 0
    for text in ("tensorrt-rtx 1.7", "patches 4:256:1024", "cache_tokens 1:256:1536", "attention_output", "scorer: trained"):
        assert text in shown.stdout
    facts = json.loads(run("inspect", reference_bundle, "--engines", engines, "--json").stdout)
    assert {engine["graph"] for engine in facts["engines"]} == {"vision_standard", "score", "embed", "decoder_standard"}
    assert all(Path(engine["path"]).stat().st_size == engine["engine_bytes"] for engine in facts["engines"])
    assert facts["damaged"] == []


def test_the_bundle_itself_stays_as_it_is(run: Run, reference_bundle: Path, tmp_path: Path) -> None:
    """Engines lie in it by default, and it still opens and verifies."""
    copy = shutil.copytree(reference_bundle, tmp_path / "x.bundle")
    assert run("build", copy, *RTX, *SMALL).exit_code == 0
    assert len(list((copy / "engines").iterdir())) == 4
    image = SCENES / "images" / "000004.png"
    assert run("generate", copy, "What colour is the circle?", "-i", image).exit_code == 0


def test_a_damaged_engine_is_shown(run: Run, reference_bundle: Path, engines: Path) -> None:
    run("build", reference_bundle, *RTX, *SMALL, "--engines", engines)
    record = next(engines.glob("*/engine.json"))
    record.write_text(record.read_text()[:100])
    shown = run("inspect", reference_bundle, "--engines", engines)
    assert shown.exit_code == 0
    assert shown.stdout.count("damaged: ") == 1


def test_inspect_without_engines(run: Run, reference_bundle: Path, engines: Path) -> None:
    shown = run("inspect", reference_bundle, "--engines", engines)
    assert "no engines: ONNX Runtime runs the graphs as they are" in shown.stdout


def test_sizes_of_images(run: Run, reference_bundle: Path, engines: Path) -> None:
    sizes = ("--image-size", "224x224:336x224:448x448", "--images", "2", "--profiles", "single", "--batch", "1:1:4")
    assert run("build", reference_bundle, *RTX, *sizes, "--engines", engines).exit_code == 0
    facts = json.loads(run("inspect", reference_bundle, "--engines", engines, "--json").stdout)
    by_graph = {engine["graph"]: engine["options"]["profiles"] for engine in facts["engines"]}
    # Parts of images are smaller than any image.
    assert by_graph["vision_standard"][0]["ranges"]["patches"] == [4, 384, 1024]
    assert by_graph["score"][0]["ranges"]["visual_tokens"] == [1, 96, 512]
    assert [profile["name"] for profile in by_graph["decoder_standard"]] == ["any"]
    assert by_graph["decoder_standard"][0]["ranges"]["batch"] == [1, 1, 4]


def test_frames_of_videos(run: Run, reference_bundle: Path, engines: Path) -> None:
    sizes = ("--image-size", "224x224", "--frames", "1:4:16", "--profiles", "single")
    assert run("build", reference_bundle, *RTX, *sizes, "--engines", engines).exit_code == 0
    facts = json.loads(run("inspect", reference_bundle, "--engines", engines, "--json").stdout)
    by_graph = {engine["graph"]: engine["options"]["profiles"][0]["ranges"] for engine in facts["engines"]}
    assert by_graph["vision_standard"]["frames"] == [1, 4, 16]
    assert by_graph["score"]["visual_tokens"][2] == 16 * 64


@pytest.mark.parametrize(
    ("options", "fact", "remedy"),
    [
        ((), "", "--backend"),
        (("--backend", "cuda"), "backend 'cuda' builds no engines", "Choose one of onnxruntime, tensorrt, tensorrt-rtx"),
        ((*RTX, "--precision", "int8"), "precision 'int8' is not known", "Choose one of fp32, fp16, bf16"),
        ((*RTX, "--visual-tokens", "512:64:4096"), "range 512:64:4096", "Put them in order"),
        ((*RTX, "--visual-tokens", "many"), "'many' is not a range", "Write it like 64:512:4096"),
        ((*RTX, "--visual-tokens", "0:64:128"), "visual_tokens is 0:64:128", "Raise its min"),
        ((*RTX, "--image-size", "448"), "'448' is no range of image sizes", "Use 448x448:1344x1344"),
        ((*RTX, *SMALL, "--image-size", "448x448"), "both visual tokens and image sizes", "Give one of them"),
        ((*RTX, "--image-size", "10x4000"), "is 10 x 4000 pixels", "Crop it"),
        (("--backend", "tensorrt-rtx", "--target", "sm90", *SMALL), "not for 'sm90'", "Choose one of sm75"),
        (
            ("--backend", "tensorrt-rtx", "--target", "sm75", *SMALL),
            "SM75 does not compute in bf16",
            "Use precision fp16. (--precision)",
        ),
        (("--backend", "tensorrt", *SMALL), "'tensorrt' is not installed", "'tensorrt>="),
        ((*RTX, *SMALL, "--max-gib", "0.001"), "all engines in", "(--max-gib)"),
    ],
)
def test_what_build_refuses(
    run: Run, reference_bundle: Path, engines: Path, options: tuple[str, ...], fact: str, remedy: str
) -> None:
    result = run("build", reference_bundle, *options, "--engines", engines)
    if not options:
        assert result.exit_code == 2
        assert remedy in result.stderr
    else:
        assert_one_clear_line(result, fact, remedy)
    assert not engines.exists() or not any(path.is_dir() for path in engines.iterdir())


def test_no_target_and_no_gpu(run: Run, reference_bundle: Path, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> str:
        raise BackendError("no NVIDIA driver is loaded. Install it.")

    monkeypatch.setattr(builder, "_target_at_hand", none_here)
    result = run("build", reference_bundle, "--backend", "tensorrt-rtx", *SMALL, "--engines", engines)
    assert_one_clear_line(result, "no target was named, and no NVIDIA driver is loaded", "Name one of sm75, sm80", "--target")


def test_check_finds_onnx_runtime_equal_to_itself(run: Run, reference_bundle: Path) -> None:
    result = run("check", reference_bundle, "--backend", "onnxruntime", "--data", SCENES, "--count", "3")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines[1:5]] == [
        ["vision", "visual_embeds"], ["score", "scores"], ["score", "attention"], ["decoder", "logits"],
    ]  # fmt: skip
    assert all(line[2] == "1.000000" for line in lines[1:5])
    assert [" ".join(line[1:]) for line in lines[6:]] == ["100.0 % 3 of 3"] * 3


def test_check_without_an_image_asks_about_a_gradient(run: Run, reference_bundle: Path) -> None:
    result = run("check", reference_bundle, "--backend", "onnxruntime")
    assert result.exit_code == 0
    assert "1 of 1" in result.stdout


def test_a_backend_that_is_too_far_off(run: Run, reference_bundle: Path) -> None:
    result = run("check", reference_bundle, "--backend", "onnxruntime", "--min-cosine", "1.1")
    assert result.exit_code == 2
    assert "1 of 1" in result.stdout  # the table is what says how far
    assert "Error: stage 'vision', output 'visual_embeds': cosine 1.000000" in result.stderr
    assert "Raise the precision" in result.stderr


@pytest.mark.parametrize("command", ["generate", "check"])
def test_a_backend_whose_library_is_missing(run: Run, reference_bundle: Path, command: str) -> None:
    result = run(command, reference_bundle, "What is this?", "--backend", "tensorrt")
    assert_one_clear_line(result, "'tensorrt' is not installed", "'tensorrt>=")


def test_a_provider_option_that_is_none(run: Run, reference_bundle: Path) -> None:
    result = run("generate", reference_bundle, "Hello", "--provider-option", "device_id")
    assert_one_clear_line(result, "--provider-option is 'device_id'", "Write it like device_id=0")


def test_a_provider_that_is_not_there(run: Run, reference_bundle: Path) -> None:
    result = run("generate", reference_bundle, "Hello", "--provider", "cuda")
    assert_one_clear_line(result, "has no CUDAExecutionProvider", "'onnxruntime-gpu[cuda,cudnn]>=")


def test_packing_for_onnxruntime(run: Run, reference_bundle: Path, engines: Path) -> None:
    built = run("build", reference_bundle, "--backend", "onnxruntime", "--engines", engines)
    assert built.exit_code == 0, built.stderr
    assert [line.split()[0] for line in built.stdout.splitlines()[1:-1]] == ["vision", "decoder"]
    shown = run("inspect", reference_bundle, "--engines", engines, "--layers")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("onnxruntime 1.") == 2
    refused = run("build", reference_bundle, "--backend", "onnxruntime", "--precision", "bf16", "--engines", engines)
    assert_one_clear_line(
        refused, "--precision has no effect: backend 'onnxruntime' builds graphs as they are, for every shape"
    )


COMMANDS = [
    (EngineKey("vision", "a" * 64, "b" * 64, "onnxruntime", "1.31.1", "x86_64-0123", {}), {}),
    (EngineKey("vision", "a" * 64, "b" * 64, "tensorrt-rtx", "1.7.1", "sm89", {"precision": "fp16"}), {}),
    (EngineKey("vision", "a" * 64, "b" * 64, "tensorrt-rtx", "1.7.1", "sm75", {}), {"precision": "fp16"}),
    (
        EngineKey(
            *("vision", "a" * 64, None, "tensorrt-rtx", "1.7.1", "sm120"),
            {"precision": "bf16", "strip_weights": False, "optimization_level": 0, "profiles": [{"name": "vision"}]},
        ),
        {},
    ),
]


@pytest.mark.parametrize(("key", "hints"), COMMANDS)
def test_the_command_of_an_error_works_when_typed(
    run: Run, reference_bundle: Path, engines: Path, key: EngineKey, hints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BuildOptions] = []
    monkeypatch.setattr("foveate.cli.build.build", lambda bundle, options, store, show: asked.append(options) or [])
    command = EngineStore(engines).command(key, reference_bundle, hints)
    with pytest.raises(BackendError, match="Run: foveate build") as caught:
        EngineStore(engines).find(key, reference_bundle, hints)
    assert str(caught.value).endswith(shlex.join(command))
    result = run(*command[1:])
    assert result.exit_code == 0, result.stderr
    (options,) = asked
    monkeypatch.undo()
    assert open_builder(options).targets() == ((cpu_target(),) if key.backend == "onnxruntime" else (key.target,))

"""The command line on the reference checkpoint: answers, figures, and one clear line for each kind of bad input."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from foveate.engines.format.seal import KEY, seal
from foveate.samples import read_samples
from tests.foveate.conftest import CHECKPOINT, SCENES, Run
from tests.runtime.clips import encode, grey, moving_square

QUESTION = "What colour is the circle?"
SCENE = SCENES / "images" / "000004.png"


def assert_one_clear_line(result: Result, *parts: str) -> None:
    """Exit code 2, one line, the parts in it, and no traceback."""
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line
    assert result.stdout == ""


def test_export_reports_parity_and_the_bundle(exported: Result, bundle: Path) -> None:
    assert exported.exit_code == 0, exported.stderr
    assert "comparisons with the reference implementation passed" in exported.stderr
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "graphs", "tokenizer"}


def test_generate_prints_the_answer_and_one_line_of_figures(run: Run, bundle: Path) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--keep", "0.5")
    assert result.stdout == "purple\n"
    (figures,) = result.stderr.splitlines()
    for part in ("visual tokens", "first token", "KV cache"):
        assert part in figures


def test_generate_shrinks_an_image_and_says_so(run: Run, bundle: Path) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--max-visual-tokens", "40")
    assert re.search(r"visual 1 seen at .* in place of .* pixels \(\d+ in place of \d+ visual tokens\)", result.stderr)
    answer = json.loads(run("generate", bundle, "-i", SCENE, QUESTION, "--max-visual-tokens", "40", "--json").stdout)
    (resized,) = answer["resized"]
    assert resized["by"] == ["max_visual_tokens"]
    assert answer["selection"]["num_visual_tokens"] == resized["visual_tokens"] <= 40 < resized["usual_visual_tokens"]


def test_a_limit_of_tokens_without_an_image(run: Run, bundle: Path) -> None:
    result = run("generate", bundle, QUESTION, "--max-visual-tokens", "40")
    assert_one_clear_line(result, "--max-visual-tokens has no effect: there is no image")


def test_generate_prints_everything_as_json(run: Run, bundle: Path) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--keep-tokens", "40", "--json")
    answer = json.loads(result.stdout)
    assert result.stderr == ""
    assert answer["text"] == "purple"
    assert len(answer["selection"]["keep_indices"]) == 40
    assert len(answer["selection"]["scores"]) == answer["selection"]["num_visual_tokens"]
    assert answer["kv_bytes"] > 0
    assert answer["timings"]["prefill_ms"] > 0


def test_half_of_the_visual_tokens_give_the_answers_of_all(run: Run, bundle: Path) -> None:
    for sample in read_samples(SCENES)[:4]:
        for keep in ("1", "0.5"):
            result = run("generate", bundle, "-i", sample.image, sample.question, "--keep", keep)
            assert result.stdout.strip() == sample.answer


@pytest.mark.parametrize(
    ("option", "value"),
    [("--keep", "0"), ("--keep", "-1"), ("--keep", "nan"), ("--keep", "2.0"), ("--mass", "0"), ("--mass", "2")],
)
def test_an_unusable_budget(run: Run, bundle: Path, option: str, value: str) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, option, value), "the budget", "expected")


def test_two_budgets_at_once(run: Run, bundle: Path) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, "--keep", "0.5", "--mass", "0.9"), "Drop all but one")


def test_a_negative_number_of_threads(run: Run, bundle: Path) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, "--threads", "-1"), "threads is -1", "Use 0")


def test_no_question_and_no_image(run: Run, bundle: Path) -> None:
    assert_one_clear_line(run("generate", bundle), "Give a question")


def test_a_prompt_longer_than_the_kv_capacity(run: Run, bundle: Path) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--kv-capacity", "100")
    assert_one_clear_line(result, "the limit is 100", "Keep fewer visual tokens")


def _png_header(side: int) -> bytes:
    """A PNG that claims to be `side x side` pixels and ends behind its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("picture.png",)),
        (b"", ("picture.png",)),
        (b"not an image", ("picture.png",)),
        (SCENE.read_bytes()[:5000], ("picture.png",)),
        (_png_header(30_000), ("900000000", "pixels")),
    ],
    ids=["missing", "empty", "unreadable", "truncated", "too many pixels"],
)
def test_a_picture_that_cannot_be_used(
    run: Run, bundle: Path, tmp_path: Path, content: bytes | None, parts: tuple[str, ...]
) -> None:
    picture = tmp_path / "picture.png"
    if content is not None:
        picture.write_bytes(content)
    assert_one_clear_line(run("generate", bundle, "-i", picture, QUESTION), *parts)


def test_the_pixel_limit_is_the_users(run: Run, bundle: Path) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, "--max-pixels", "1000"), "1000")


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGBA", "P", "1", "I;16"])
def test_pictures_of_other_modes_are_answered(run: Run, bundle: Path, tmp_path: Path, mode: str) -> None:
    picture = tmp_path / ("picture.tiff" if mode in ("CMYK", "I;16") else "picture.png")
    with Image.open(SCENE) as scene:
        scene.convert("I" if mode == "I;16" else mode).convert(mode).save(picture)
    result = run("generate", bundle, "-i", picture, QUESTION, "--keep", "0.5")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()


def _edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        del manifest[KEY]
        change(manifest)
        (bundle / "manifest.json").write_bytes(seal(manifest))

    return edit


def _flip_a_byte(bundle: Path) -> None:
    weights = bundle / "graphs" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (_flip_a_byte, ("weights.safetensors", "sha256")),
        (lambda bundle: (bundle / "graphs" / "score.onnx").unlink(), ("score.onnx", "missing")),
        (_edit_manifest(lambda manifest: manifest.update(schema_version=99)), ("schema version 99",)),
        (_edit_manifest(lambda manifest: manifest.update(surprise=1)), ("surprise",)),
        (_edit_manifest(lambda manifest: manifest["graphs"]["score"].update(file="../../x.onnx")), ("leaves the bundle",)),  # type: ignore[index]
        (lambda bundle: (bundle / "manifest.json").write_text("{"), ("not a valid manifest",)),
        (lambda bundle: (bundle / "manifest.json").unlink(), ("is not a bundle", "foveate export")),
    ],
    ids=["changed byte", "missing file", "schema version", "unknown key", "path out", "not JSON", "no manifest"],
)
def test_a_damaged_bundle(
    run: Run, bundle: Path, tmp_path: Path, damage: Callable[[Path], None], parts: tuple[str, ...]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    damage(copy)
    assert_one_clear_line(run("generate", copy, "-i", SCENE, QUESTION), *parts)


def test_an_output_that_exists_is_kept(run: Run, bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    assert_one_clear_line(run("export", CHECKPOINT, "-o", bundle), "exists already", "--force")
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "llava", None])
def test_an_unknown_model_type_leaves_nothing(run: Run, tmp_path: Path, model_type: str | None) -> None:
    checkpoint = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["model_type"] = model_type
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert_one_clear_line(run("export", checkpoint, "-o", tmp_path / "x.bundle"), "qwen2_vl")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("command", [("export", CHECKPOINT), ("demo", "--data", SCENES)])
def test_the_exporters_libraries_are_not_installed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[object, ...]
) -> None:
    for name in [name for name in sys.modules if name.startswith("foveate.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("foveate.exporter", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_one_clear_line(run(*command, "-o", tmp_path / "out"), "'torch' is not installed", "'torch>=")


def test_the_demo_without_its_scenes(run: Run, tmp_path: Path) -> None:
    assert_one_clear_line(run("demo", "--data", tmp_path, "-o", tmp_path / "out"), "questions.jsonl", "--data")


def _curve(*points: tuple[float, float]) -> Callable[[Path], None]:
    """Writes a retention curve into a bundle's manifest."""
    shares = ("retained", "low", "high", "stay", "stay_low", "stay_high")
    entries = [{"keep": keep, "questions": 100, **dict.fromkeys(shares, share)} for keep, share in points]
    return _edit_manifest(lambda manifest: manifest["scorer"].update(retention=entries))  # type: ignore[attr-defined]


def test_a_selector_is_chosen_by_name(run: Run, bundle: Path) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--keep", "0.5", "--select", "random", "--json")
    selection = json.loads(result.stdout)["selection"]
    assert selection["selector"] == "random"
    assert selection["scores"] is None


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--keep", "0.5", "--select", "surprise"), ("no selector 'surprise'", "attention")),
        (("--keep", "0.5", "--select", "learned"), ("needs a trained scorer", "--scorer")),
        (("--select", "random", "--mass", "0.5"), ("selector 'random' has no scores to sum",)),
    ],
    ids=["unknown", "not trained", "nothing to sum"],
)
def test_a_selector_that_cannot_be_used(run: Run, bundle: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, *options), *parts)


def test_a_budget_below_the_floor_is_refused(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))
    _curve((0.25, 0.9), (0.5, 0.96))(copy)
    question = ("generate", copy, "-i", SCENE, QUESTION, "--min-retained", "0.95")
    assert_one_clear_line(run(*question, "--keep", "0.25"), "90.00 %", "min_retained is 0.95", "Keep at least")
    assert run(*question, "--keep", "0.5").stdout == "purple\n"
    assert run(*question, "--keep", "1").stdout == "purple\n"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--min-retained", "0.95"), ("no retention curve", "--calibrate")),
        (("--min-retained", "0"), ("min_retained is 0.0", "expected a number above 0 and up to 1")),
        (("--min-retained", "95"), ("min_retained is 95.0", "Use 0.95")),
        (("--min-retained", "0.95", "--select", "random"), ("not 'random'",)),
    ],
    ids=["no curve", "zero", "per cent", "another selector"],
)
def test_a_floor_that_cannot_be_used(run: Run, bundle: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, "--keep", "0.5", *options), *parts)


@pytest.mark.parametrize("name", ["heat.png", "heat.JPG", "heat.webp"])
def test_an_explanation_takes_the_place_of_an_older_one(run: Run, bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"older")
    result = run("generate", bundle, "-i", SCENE, "-i", SCENE, QUESTION, "--keep", "0.25", "--explain", tmp_path / name)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip()
    with Image.open(tmp_path / name) as picture:
        picture.load()
        assert picture.format == {"p": "PNG", "J": "JPEG", "w": "WEBP"}[name[5]]
        assert picture.width > 900
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_explanation_beside_json_scores_what_all_stays(run: Run, bundle: Path, tmp_path: Path) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--json", "--explain", tmp_path / "heat.png")
    answer = json.loads(result.stdout)
    assert answer["text"] == "purple"
    assert len(answer["selection"]["scores"]) == len(answer["selection"]["keep_indices"])
    assert result.stderr == ""
    assert (tmp_path / "heat.png").is_file()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("heat.txt", ("heat.txt", ".png", "Rename it")),
        ("heat", ("expected a file that ends in", ".png")),
        ("missing/heat.png", ("heat.png", "does not exist")),
        ("folder.png", ("folder.png", "is a folder")),
    ],
)
def test_an_explanation_that_could_not_be_written_is_refused_before_the_bundle_is_opened(
    run: Run, tmp_path: Path, name: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = run("generate", tmp_path / "missing.bundle", "-i", SCENE, QUESTION, "--explain", tmp_path / name)
    assert_one_clear_line(result, *parts)


def test_an_explanation_without_an_image(run: Run, tmp_path: Path) -> None:
    result = run("generate", tmp_path / "missing.bundle", QUESTION, "--explain", tmp_path / "heat.png")
    assert_one_clear_line(result, "there is no image", "-i")


def test_a_failed_explanation_leaves_the_older_one(
    run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:4])
        raise OSError(28, "No space left on device")

    (tmp_path / "heat.png").write_bytes(b"older")
    monkeypatch.setattr(Path, "write_bytes", fail)
    result = run("generate", bundle, "-i", SCENE, QUESTION, "--keep", "0.5", "--explain", tmp_path / "heat.png")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert result.stdout == "purple\n"
    assert (tmp_path / "heat.png").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["heat.png"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds, four frames in each."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(encode(moving_square(12), rate=4))
    return path


def test_a_video_is_answered(run: Run, bundle: Path, clip: Path) -> None:
    result = run("generate", bundle, "--video", clip, QUESTION, "--keep", "0.5", "--json")
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert answer["frame_seconds"] == [0.0, 0.5, 1.0, 1.75, 2.25, 2.75]  # as qwen-vl-utils takes them
    assert answer["grids"][0][0] == 3  # of two frames each
    assert len(answer["selection"]["keep_indices"]) * 2 == answer["selection"]["num_visual_tokens"]


def test_images_and_videos_are_answered_together(run: Run, bundle: Path, clip: Path) -> None:
    videos = ("--video", clip, "--video", clip, "--fps", "4", "--max-frames", "5", "--frame-rule", "interval")
    result = run("generate", bundle, "-i", SCENE, *videos, QUESTION, "--keep-tokens", "60", "--json")
    answer = json.loads(result.stdout)
    assert [grid[0] for grid in answer["grids"]] == [1, 3, 3]
    assert answer["frame_seconds"] == [0.0, 0.5, 1.0, 1.75, 2.25] * 2  # three seconds in five, as near as frames are
    assert len(answer["selection"]["keep_indices"]) == 60


def test_an_explanation_of_a_video(run: Run, bundle: Path, clip: Path, tmp_path: Path) -> None:
    options = ("--keep", "0.5", "--select", "evs", "--explain", tmp_path / "heat.png")
    result = run("generate", bundle, "--video", clip, QUESTION, *options)
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.height > 3 * 200  # a row for each of three frames


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--fps", "0"), ("fps is 0.0", "above 0")),
        (("--fps", "-2"), ("fps is -2.0",)),
        (("--fps", "nan"), ("fps is nan",)),
        (("--max-frames", "0"), ("max_frames is 0", "at least 1")),
        (("--frame-rule", "odd"), ("frame_rule is 'odd'", "interval, uniform, qwen-vl-utils")),
        (("--max-visual-tokens", "1"), ("max_visual_tokens is 1", "a video of 6 frames", "Lower max_frames")),
        (("--max-frames", "769"), ("max_frames is 769", "the limit is 768")),
        (("--max-pixels", "1000"), ("112 x 112 pixels", "the limit is 1000")),
        (("--fps", "4", "--kv-capacity", "60"), ("the limit is 60", "Keep fewer visual tokens")),
    ],
)
def test_an_option_that_no_video_can_have(
    run: Run, bundle: Path, clip: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_one_clear_line(run("generate", bundle, "--video", clip, QUESTION, *options), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("clip.mp4", "is not there")),
        (b"", ("clip.mp4", "can't be read as a video")),
        (b"not a video" * 50, ("clip.mp4", "can't be read as a video")),
        (SCENE.read_bytes(), ("clip.mp4", "can't be read as a video")),
        (encode([grey(number) for number in range(20)])[:1500], ("clip.mp4", "Give a whole file")),
    ],
    ids=["missing", "empty", "unreadable", "an image", "truncated"],
)
def test_a_video_that_cannot_be_used(
    run: Run, bundle: Path, tmp_path: Path, content: bytes | None, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    assert_one_clear_line(run("generate", bundle, "--video", path, QUESTION), *parts)


def test_the_video_library_is_not_installed(run: Run, bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("generate", bundle, "--video", clip, QUESTION)
    assert_one_clear_line(result, "'av' is not installed", "pip install 'av>=")


@pytest.mark.parametrize("option", [("--fps", "2"), ("--max-frames", "8"), ("--frame-rule", "uniform")])
def test_frames_of_no_video(run: Run, bundle: Path, option: tuple[str, str]) -> None:
    result = run("generate", bundle, "-i", SCENE, QUESTION, *option)
    assert_one_clear_line(result, "there is no video", "Give one with --video")


def test_generate_samples_and_penalises_where_it_is_told(run: Run, bundle: Path) -> None:
    def answer(*options: str) -> list[int]:
        result = run("generate", bundle, "-i", SCENE, QUESTION, "--json", *options)
        assert result.exit_code == 0
        return list(json.loads(result.stdout)["tokens"])

    plain = answer()
    assert answer("--repetition-penalty", "1") == plain
    assert answer("--repetition-penalty", "50", "--max-new-tokens", "8") != plain
    assert answer("--sample", "--seed", "1") == answer("--temperature", "1", "--top-k", "50", "--seed", "1")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--repetition-penalty", "0"], ["repetition_penalty is 0.0, expected a number above 0", "(--repetition-penalty)"]),
        (["--sample", "--top-k", "3"], ["beside of_checkpoint", "(--sample, --temperature, --top-k, --top-p)"]),
        (["--max-new-tokens", "0"], ["max_new_tokens is 0, expected a whole number of at least 1", "(--max-new-tokens)"]),
    ],
)
def test_unusable_sampling_names_its_flags(run: Run, bundle: Path, options: list[str], parts: list[str]) -> None:
    assert_one_clear_line(run("generate", bundle, "-i", SCENE, QUESTION, *options), *parts)


def test_what_repeats_is_not_computed(run: Run, bundle: Path, tmp_path: Path) -> None:
    """A scene on a white page."""
    page = Image.new("RGB", (448, 448), "white")
    page.paste(Image.open(SCENE), (28, 28))
    page.save(tmp_path / "page.png")
    words = ("generate", bundle, "-i", tmp_path / "page.png", QUESTION, "--redundancy", "0")
    (figures,) = run(*words).stderr.splitlines()
    encoding = json.loads(run(*words, "--json").stdout)["encoding"]
    told = f"the tower saw {encoding['encoded_tokens']}, {encoding['redundant_tokens']} repeat others, first token"
    assert told in figures
    assert encoding["encoded_tokens"] + encoding["redundant_tokens"] == encoding["visual_tokens"] == 256
    assert_one_clear_line(run(*words[:-1], "256"), "redundancy is 256, expected a whole number from 0 to 255", "(--redundancy)")

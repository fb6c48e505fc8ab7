"""No option is silently ignored: each says when it has an effect, and is refused by name where it has none."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from foveate.cli import _flags, _named, main
from foveate.cli.command import ALWAYS, Argument, Command, Option
from tests.foveate.conftest import ROOT, SCENES, Run
from tests.foveate.test_cli import SCENE, assert_one_clear_line


def walk(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(walk(main))
NEEDY = [
    (name, parameter.flag)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if isinstance(parameter, Option | Argument) and parameter.need is not ALWAYS
]

START = {
    "generate": "no.bundle Hello",
    "build": "no.bundle --backend onnxruntime",
    "inspect": "no.bundle",
    "check": "no.bundle --backend onnxruntime",
    "profile": "no.bundle",
    "bench": "http://127.0.0.1:9",
    "evaluate": f"no.bundle {SCENES} -o out",
    "scorer label": f"nowhere {SCENES} -o out",
    "serve": "no.bundle",
}
"""The least that a command takes; none of them gets far."""
COMPILER = "--backend tensorrt-rtx"
ENGINES = {
    "--precision": ("--precision bf16", COMPILER),
    "--device": ("--device 1", COMPILER),
    "--no-cuda-graphs": ("--no-cuda-graphs", COMPILER),
}
SESSION = {
    **ENGINES,
    "--provider": (f"{COMPILER} --provider cuda", "--backend onnxruntime"),
    "--provider-option": (f"{COMPILER} --provider-option a=1", "--backend onnxruntime"),
    "--engines": ("--backend openvino --engines e", "--backend onnxruntime"),
    "--threads": (f"{COMPILER} --threads 2", "--backend openvino"),
}
PIPELINE = {**SESSION, "--vision-backend": ("--vision-backend onnxruntime", "--vision-backend openvino")}
CASES: dict[str, dict[str, tuple[str, str]]] = {
    "generate": {
        **PIPELINE,
        **{
            flag: (f"{flag} {value}", f"-i {SCENE}")
            for flag, value in (("--keep", 0.5), ("--keep-tokens", 5), ("--mass", 0.5), ("--ttft-ms", 300), ("--max-pixels", 9))
        },
        "--explain": ("--explain heat.png", f"-i {SCENE}"),
        "--fps": (f"--fps 2 -i {SCENE}", f"--video {SCENE}"),
        "--max-frames": (f"--max-frames 2 -i {SCENE}", f"--video {SCENE}"),
        "--frame-rule": (f"--frame-rule uniform -i {SCENE}", f"--video {SCENE}"),
        "--max-visual-tokens": ("--max-visual-tokens 64", f"-i {SCENE}"),
        "--encode": ("--encode 0.5", f"-i {SCENE}"),
        "--redundancy": ("--redundancy 0", f"-i {SCENE}"),
        "--select": (f"-i {SCENE} --select random", "--keep 0.5"),
        "--only-if-faster": (f"-i {SCENE} --only-if-faster", "--keep 0.5"),
        "--min-retained": (f"-i {SCENE} --min-retained 0.9", "--keep 0.5"),
        "--top-k": ("--top-k 5", "--temperature 1"),
        "--top-p": ("--top-p 0.5", "--temperature 1"),
        "--seed": ("--seed 5", "--temperature 1"),
    },
    "build": {
        **{
            flag: (f"{flag} {value}".strip(), COMPILER)
            for flag, value in (
                ("--precision", "fp16"),
                ("--target", "sm89"),
                ("--visual-tokens", "1:2:3"),
                ("--image-size", "448x448"),
                ("--frames", "1:2:3"),
                ("--text-tokens", "1:2:3"),
                ("--new-tokens", 5),
                ("--batch", "1:2:3"),
                ("--profiles", "single"),
                ("--strip-weights", ""),
                ("--optimization-level", 1),
            )
        },
        "--images": ("--images 2", f"{COMPILER} --image-size 448x448"),
    },
    "inspect": {"--layers": ("--layers --json", "--json out.json")},
    "check": {
        **SESSION,
        "QUESTION": (f"Hello --data {SCENES}", ""),
        "--image": (f"-i {SCENE} --data {SCENES}", ""),
        "--count": ("--count 5", f"--data {SCENES}"),
    },
    "profile": {**PIPELINE, "--requests": ("--requests 2 --concurrency ''", "--concurrency 1")},
    "bench": {
        **{
            flag: (f"{flag} {value}".strip(), "")  # a URL is what it has no effect with
            for flag, value in (
                ("--backend", "openvino"),
                ("--vision-backend", "openvino"),
                ("--provider", "cuda"),
                ("--provider-option", "a=1"),
                ("--precision", "fp16"),
                ("--engines", "e"),
                ("--device", 1),
                ("--no-cuda-graphs", ""),
                ("--threads", 2),
                ("--serve", "x"),
            )
        },
        "--requests": ("--requests 2 --seconds 5", ""),
        "--image-size": (f"--image-size 9x9 --data {SCENES}", ""),
    },
    "evaluate": {**PIPELINE, "--labels": (f"--labels {SCENES}", "--select oracle")},
    "scorer label": {"--seed": ("--seed 1", "--limit 1")},
    "serve": {**PIPELINE, "--min-retained": ("--min-retained 0.9", "--ttft-slo-ms 300")},
}
"""Command -> flag -> words with which it has no effect, and what gives it one where it is added; empty for nothing."""


def test_every_parameter_says_when_it_has_an_effect() -> None:
    assert set(COMMANDS) == {*START, "export", "scorer train", "demo"}
    for command in COMMANDS.values():
        assert isinstance(command, Command)
        assert all(isinstance(parameter, Option | Argument) for parameter in command.params)


def test_every_condition_is_tried() -> None:
    assert {(name, flag) for name, cases in CASES.items() for flag in cases} == set(NEEDY)


@pytest.mark.parametrize(("name", "flag"), NEEDY)
def test_what_has_no_effect_is_refused_by_name(
    run: Run, name: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, remedy = CASES[name][flag]
    start = [*name.split(), *shlex.split(START[name])]
    assert_one_clear_line(run(*start, *shlex.split(words)), f"{flag} has no effect: ", f"or leave out {flag}.")
    if remedy:
        refused = run(*start, *shlex.split(words), *shlex.split(remedy))
        assert "has no effect" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("--precision bf16 --threads 1", ""),
        (f"{COMPILER} --threads 1", ""),
        ("--provider cuda", ""),
        ("--device 1", "--device"),
        (f"{COMPILER} --provider cuda", "--provider"),
    ],
)
def test_an_option_is_for_either_backend(run: Run, words: str, refused: str) -> None:
    """One of two backends is enough to look at it."""
    found = run("generate", "no.bundle", "Hello", "--vision-backend", "openvino", *words.split())
    assert re.findall(r"(--[a-z-]+) has no effect", found.stderr) == [refused][: bool(refused)]
    assert_one_clear_line(found, refused or "no.bundle")


FOLDERS = ("engines", "exporter", "foveate", "runtime")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text in the code, with X where a value goes in."""
    for file in (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield file, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield file, node.value


_QUOTED = re.compile(r"['`](foveate [^'`\n]+)['`]|[Rr]un:? (foveate .+?)(?:\.|$)")


def quoted_commands() -> list[str]:
    """Every command of foveate that a text quotes, or tells to run."""
    return sorted({found for _, text in texts() for match in _QUOTED.findall(text) for found in match if found})


@pytest.mark.parametrize("text", quoted_commands())
def test_a_command_in_a_message_is_one(text: str) -> None:
    """Its words are a command's, and its flags are that command's."""
    words = shlex.split(text)[1:]
    name = next((" ".join(words[:length]) for length in (2, 1) if " ".join(words[:length]) in COMMANDS), None)
    if name is None:
        assert words == ["scorer"]
        return
    known = {flag for parameter in COMMANDS[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


def documented() -> list[str]:
    """Every command of foveate in the code blocks of the pages."""
    pages = [ROOT / "README.md", ROOT / "models" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(), re.S | re.M)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line.partition(" | ")[0] for line in lines if re.match(r"foveate [a-z]", line)})


def test_pages_have_their_commands_in_blocks() -> None:
    assert len(documented()) > 30


@pytest.mark.parametrize("text", documented())
def test_a_command_of_the_pages_is_accepted(text: str) -> None:
    words = shlex.split(text, comments=True)[1:]
    name = " ".join(words[: 2 if words[0] == "scorer" else 1])
    if words[-1] == "--help":
        assert name in COMMANDS
        return
    command = COMMANDS[name]
    assert isinstance(command, Command)
    command.refuse_ignored(command.make_context(name, words[len(name.split()) :]))


def test_a_librarys_option_becomes_a_flag() -> None:
    named = {
        "export": {"overwrite": "--force", "check": "--no-check", "scorer": "--scorer", "calibrate": "--calibrate"},
        "build": {"targets": "--target", "max_bytes": "--max-gib", "engines": "--engines", "image_sizes": "--image-size"},
        "evaluate": {"keeps": "--keep", "selectors": "--select", "force": "--force", "output": "--output"},
        "bench": {"clients": "--concurrency", "rates": "--rate", "timeout_s": "--timeout", "ttft_slo_ms": "--ttft-slo-ms"},
        "profile": {"clients": "--concurrency", "keeps": "--keep", "memory": "--no-memory"},
        "generate": {
            "ratio": "--keep",
            "tokens": "--keep-tokens",
            "images": "--image",
            "videos": "--video",
            "select": "--select",
            "limits": "--max-pixels",
            "kv_capacity_tokens": "--kv-capacity",
            "cuda_graphs": "--no-cuda-graphs",
        },
        "scorer train": {"overwrite": "--force", "seed": "--seed"},
        "serve": {"port": "--port", "tokens_per_slot": "--slot-tokens", "stuck_after_s": "--stuck-after"},
    }
    for command, flags in named.items():
        assert {name: _flags(COMMANDS[command], (name,)) for name in flags} == flags
    assert _flags(COMMANDS["generate"], ("ratio", "surprise", "keep")) == "--keep"


def named_by_errors() -> Iterator[str]:
    """Every name in an `options=(...)` of the code, which is how errors name options."""
    for room in ("engines", "exporter", "runtime", "foveate"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "options" and isinstance(node.value, ast.Tuple):
                    yield from (name.value for name in node.value.elts if isinstance(name, ast.Constant))


def test_every_option_that_an_error_names_has_a_flag() -> None:
    flags = {name for command in COMMANDS.values() for name, _ in _named(command)}
    named = set(named_by_errors())
    assert {"overwrite", "kv_capacity_tokens", "precision"} <= named
    assert named <= flags

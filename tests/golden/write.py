"""`python -m tests.golden.write`: writes the golden vectors anew; with `--tokens` those of whole answers too, in minutes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from foveate.exporter import ExportOptions, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.runtime import load
from foveate.runtime.select import SELECTORS
from tests import tiny_llava
from tests.golden import cases, vectors

HERE = Path(__file__).parent
CHECKPOINTS = {
    "qwen2_vl": "models/qwen2-vl-tiny",
    "llava_onevision": "models/llava-onevision-tiny",
    "llava_llama": "models/vila1.5-tiny",
    "llava": "tests/tiny_llava.py",
}
TOKENIZERS = {
    "qwen2_vl": "models/qwen2-vl-tiny/tokenizer.json",
    "llava_onevision": "models/llava-onevision-tiny/tokenizer.json",
    "llava_llama": "models/vila1.5-tiny/llm/tokenizer.json",
    "llava": "tests/golden/llava_tokenizer.json",
}
LLAVA_SEED = 1
Document = dict[str, Any]


def checkpoint(name: str, folder: Path) -> Path:
    """The folder of a checkpoint in `CHECKPOINTS`; what is not in the repository is made in `folder`."""
    made = folder / "llava"
    if name != CHECKPOINTS["llava"]:
        return vectors.ROOT / name
    return made if made.exists() else tiny_llava.save_tiny(made, seed=LLAVA_SEED)


def bundle(name: str, folder: Path) -> Path:
    """The bundle of a checkpoint, with its scorer where it has one."""
    source = checkpoint(name, folder)
    scorer = source / "scorer.safetensors"
    return export(source, folder / f"{source.name}.bundle", ExportOptions(scorer=scorer if scorer.exists() else None)).bundle


def constants(name: str, folder: Path) -> Document:
    """What the exporter says of a checkpoint's family."""
    family = read_family(Checkpoint.open(checkpoint(name, folder)))
    return {"processor": msgspec.to_builtins(family.processor()), "prompt": msgspec.to_builtins(family.prompt())}


def family_document(family: str, folder: Path) -> Document:
    document = {"family": family, "tokenizer": TOKENIZERS[family], **constants(CHECKPOINTS[family], folder)}
    return {
        **document,
        "feeds": _filled(cases.FEEDS[family], lambda case: vectors.feeds(document, case)),
        "prompts": _filled(cases.PROMPTS[family], lambda case: vectors.prompt(document, case)),
    }


def selection_document() -> Document:
    document = {"situations": cases.SITUATIONS}
    asked = [
        {"situation": situation, "selector": selector, "budget": budget}
        for situation in cases.SITUATIONS
        for selector in SELECTORS
        for budget in cases.BUDGETS
    ]
    asked += [
        {"situation": "clip", "selector": name, "options": options, "budget": {"ratio": 0.3}} for name, options in cases.OPTIONS
    ]
    grids = [{"grids": situation["grids"]} for situation in cases.SITUATIONS.values()]
    return {
        **document,
        "selections": _filled(asked, lambda case: vectors.selection(document, case)),
        "neighbours": _filled(grids, lambda case: vectors.neighbours(document, case)),
    }


def tokens_document(folder: Path) -> Document:
    found = []
    for name in CHECKPOINTS.values():
        asked = [case for case in cases.TOKENS if case["checkpoint"] == name]
        pipe = load(bundle(name, folder))
        found += _filled(asked, lambda case, pipe=pipe: vectors.tokens(pipe, case))
        pipe.close()
    return {"answers": found}


def _filled(asked: Iterable[Document], compute: Callable[[Document], Document]) -> list[Document]:
    return [{**case, "expected": compute(case)} for case in asked]


def _write(name: str, document: Document) -> None:
    """One line a case, so that a change shows which ones."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {_line(row)}" for row in value)
            lines.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {_line(value)}")
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_llava.build_tokens().save(str(HERE / "llava_tokenizer.json"))
        for family in CHECKPOINTS:
            _write(family, family_document(family, folder))
        _write("selection", selection_document())
        if "--tokens" in sys.argv[1:]:
            _write("tokens", tokens_document(folder))


if __name__ == "__main__":
    main()

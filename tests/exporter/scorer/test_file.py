"""`scorer.safetensors`: what was written is read, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from foveate.engines import ScorerError
from foveate.exporter.scorer import NetworkConfig, Scorer, ScorerFacts, read_scorer, write_scorer
from foveate.exporter.scorer.file import SCHEMA_VERSION
from tests.exporter.scorer.synthetic import HEADS, first_layer

KEY = "foveate_scorer"
CONFIG = NetworkConfig("sequence", ("mean", "cosine"), depth=2)
FACTS = ScorerFacts(SCHEMA_VERSION, "tiny", "a" * 64, HEADS, CONFIG, {"seed": 0, "validation_loss": 0.5})


@pytest.fixture
def scorer() -> Scorer:
    torch.manual_seed(0)
    scorer = Scorer(CONFIG, HEADS)
    torch.nn.init.normal_(scorer.shift)
    torch.nn.init.uniform_(scorer.scale, 0.5, 2)
    return scorer


@pytest.fixture
def file(scorer: Scorer, tmp_path: Path) -> Path:
    write_scorer(tmp_path / "scorer.safetensors", scorer, FACTS)
    return tmp_path / "scorer.safetensors"


def test_what_was_written_is_read(scorer: Scorer, file: Path) -> None:
    read, facts = read_scorer(file)
    assert facts == FACTS
    assert read.config == CONFIG
    assert read.heads == HEADS
    assert not read.training
    first = first_layer(HEADS, rows=3, tokens=7, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(read(first), scorer(first), rtol=0, atol=0)


def test_the_same_scorer_gives_the_same_bytes_and_leaves_nothing_else(scorer: Scorer, file: Path) -> None:
    before = file.read_bytes()
    write_scorer(file, scorer, FACTS)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def rewrite(change_record: Callable[[dict[str, Any]], object], change_tensors: Callable[[dict[str, Any]], object]) -> Any:
    """Writes the file again with another record or other tensors."""

    def damage(file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            record = json.loads(opened.metadata()[KEY])
        tensors = load_file(file)
        change_record(record)
        change_tensors(tensors)
        save_file(tensors, file, {KEY: json.dumps(record)})

    return damage


def record(**changes: Any) -> Any:
    return rewrite(lambda record: record.update(changes), lambda tensors: None)


NOT_WHOLE = r"is not a whole scorer: .+\. Make one with 'foveate scorer train"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"does not exist\. Make one with 'foveate scorer train LABELS -o FILE'"),
        (lambda file: save_file({"a": torch.zeros(2)}, file), "is not a scorer: its metadata has no 'foveate_scorer'"),
        (lambda file: file.write_bytes(b"not safetensors"), NOT_WHOLE),
        (lambda file: file.write_bytes(b""), NOT_WHOLE),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), NOT_WHOLE),
        (lambda file: file.write_bytes(file.read_bytes()[:100]), NOT_WHOLE),
        (record(schema_version=99), "has schema version 99, this foveate reads 1. Make one"),
        (record(surprise=1), NOT_WHOLE),
        (record(heads="two"), NOT_WHOLE),
        (record(heads=HEADS + 1), NOT_WHOLE),
        (record(network={"kind": "transformer"}), NOT_WHOLE),
        (record(network={"kind": "sequence", "depth": 3}), NOT_WHOLE),
        (rewrite(lambda record: None, lambda tensors: tensors.pop("scale")), NOT_WHOLE),
        (rewrite(lambda record: None, lambda tensors: tensors.update(surprise=torch.zeros(1))), NOT_WHOLE),
    ],
)
def test_a_file_that_is_no_scorer(file: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(file)
    with pytest.raises(ScorerError, match=message) as caught:
        read_scorer(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_scorer(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="does not exist"):
        read_scorer(tmp_path)

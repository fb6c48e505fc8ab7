"""generation_config.json: followed, refused by name, or known to change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from foveate.engines import ExportError, GenerationEntry
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.generation import (
    ENDS,
    FILE,
    FOLLOWED,
    REFUSED,
    SAMPLING,
    WITHOUT_EFFECT,
    Generation,
    read_generation,
)

VOCAB = 100
DOCS = Path(__file__).parents[2] / "docs" / "generation.md"


def read(folder: Path, values: dict[str, Any] | None, config: dict[str, Any] | None = None, **options: Any) -> Generation:
    if values is not None:
        (folder / FILE).write_text(json.dumps(values))
    return read_generation(Checkpoint(folder, {}, {}, folder), VOCAB, config or {}, **options)


def test_every_key_of_transformers_is_known() -> None:
    tables = (FOLLOWED, ENDS, tuple(REFUSED), tuple(SAMPLING), tuple(WITHOUT_EFFECT))
    named = [key for table in tables for key in table]
    assert len(named) == len(set(named))
    assert set(named) == vars(GenerationConfig()).keys()


def test_every_key_is_documented() -> None:
    text = DOCS.read_text()
    for key in (*FOLLOWED, *ENDS, *REFUSED, *SAMPLING):
        assert f"`{key}`" in text, key


def test_transformers_own_defaults_are_exported(tmp_path: Path) -> None:
    values = GenerationConfig()._get_default_generation_params()
    read_entry = read(tmp_path, {**values, "eos_token_id": 5})
    assert read_entry == ((5,), 5, 64, GenerationEntry())


def test_what_published_checkpoints_say(tmp_path: Path) -> None:
    values = {
        "bos_token_id": 43,
        "do_sample": True,
        "eos_token_id": [45, 43],
        "pad_token_id": 43,
        "repetition_penalty": 1.05,
        "temperature": 0.01,
        "top_k": 1,
        "top_p": 0.001,
        "transformers_version": "4.41.2",
    }
    entry = GenerationEntry(repetition_penalty=1.05, do_sample=True, temperature=0.01, top_k=1, top_p=0.001)
    assert read(tmp_path, values) == ((45, 43), 43, 64, entry)


@pytest.mark.parametrize("key", REFUSED)
def test_what_can_not_be_followed_is_refused_by_name(key: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"{FILE}: {key} is 7, which changes answers .* Delete the key to export without it"):
        read(tmp_path, {"eos_token_id": 1, key: 7})
    for harmless in (None, *REFUSED[key]):
        assert read(tmp_path, {"eos_token_id": 1, key: harmless}).generation == GenerationEntry()


@pytest.mark.parametrize("key", SAMPLING)
def test_unknown_sampling_is_noted(key: str, tmp_path: Path) -> None:
    assert read(tmp_path, {"eos_token_id": 1, key: 0.5}).generation == GenerationEntry(unsupported_sampling=(key,))


@pytest.mark.parametrize("eos", [None, [], -1, VOCAB, [VOCAB, -1], 10**9])
def test_an_answer_that_could_not_end_is_refused(eos: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"names no 'eos_token_id' .* within the 100 tokens .* no answer would end\. Write"):
        read(tmp_path, {"eos_token_id": eos})


def test_tokens_beyond_the_table_are_left_out(tmp_path: Path) -> None:
    values = {"eos_token_id": [VOCAB, 5, 5, -1], "pad_token_id": VOCAB, "suppress_tokens": [-1, 3, VOCAB]}
    assert read(tmp_path, values) == ((5,), 5, 64, GenerationEntry(suppress_tokens=(3,)))
    with pytest.raises(ExportError, match="bad_words_ids names tokens beyond the 100 of the table"):
        read(tmp_path, {"eos_token_id": 5, "bad_words_ids": [[3, VOCAB]]})


def test_the_config_stands_in(tmp_path: Path) -> None:
    config = {"eos_token_id": 7, "pad_token_id": 8, "repetition_penalty": 1.5}
    assert read(tmp_path, None, config) == ((7,), 8, 64, GenerationEntry(repetition_penalty=1.5))
    assert read(tmp_path, {"max_new_tokens": 9}, config) == ((7,), 8, 9, GenerationEntry())
    assert read(tmp_path, {"eos_token_id": 3}, config, turn_ends=[2]).eos_token_ids == (2, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", "1.1"),
        ("no_repeat_ngram_size", -1),
        ("bad_words_ids", [3]),
        ("bad_words_ids", [[]]),
        ("stop_strings", [""]),
        ("stop_strings", [3]),
        ("temperature", -1),
        ("top_p", 0),
        ("max_new_tokens", 0),
        ("eos_token_id", "5"),
    ],
)
def test_unusable_values_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=FILE):
        read(tmp_path, {"eos_token_id": 1, key: value})


def test_bad_words_that_end_an_answer_stay_allowed(tmp_path: Path) -> None:
    values = {"eos_token_id": [1, 2], "bad_words_ids": [[1], [2, 3, 3], [4]], "stop_strings": "END"}
    assert read(tmp_path, values).generation == GenerationEntry(bad_words_ids=((2, 3, 3), (4,)), stop_strings=("END",))

"""generation_config.json: values that change a known answer, followed by a pipeline and by transformers' model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foveate.runtime import Pipeline

Values = dict[str, Any]

GENERATION_CASES: dict[str, Callable[[Sequence[int]], Values]] = {
    "repetition_penalty": lambda answer: {"repetition_penalty": 1.3},
    "repetition_penalty below 1": lambda answer: {"repetition_penalty": 0.6},
    "no_repeat_ngram_size": lambda answer: {"no_repeat_ngram_size": 1},
    "bad_words_ids": lambda answer: {"bad_words_ids": [[answer[0]], [*answer[1:3]]]},
    "min_new_tokens": lambda answer: {"eos_token_id": [answer[0], answer[1]], "min_new_tokens": 3},
    "suppress_tokens": lambda answer: {"suppress_tokens": [answer[0], answer[2], -1, 10**6]},
    "begin_suppress_tokens": lambda answer: {"begin_suppress_tokens": [answer[0]]},
    "all of them": lambda answer: {
        "repetition_penalty": 1.05,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[answer[1]]],
        "eos_token_id": [answer[2]],
        "min_new_tokens": 4,
        "suppress_tokens": [answer[3]],
        "begin_suppress_tokens": [answer[0]],
        "do_sample": True,
        "temperature": 0.01,
        "top_k": 1,
        "top_p": 0.001,
    },
}
"""Key -> what the file says, for the answer without it."""


def follow(
    values: Values, pipe: Pipeline, model: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, prompt_counts: bool = True
) -> None:
    """Makes both follow a generation_config.json of these values."""
    from transformers import GenerationConfig

    from foveate.exporter.checkpoint import Checkpoint
    from foveate.exporter.generation import FILE, read_generation

    manifest = pipe.manifest
    document = {"eos_token_id": list(manifest.prompt.eos_token_ids), **values}
    (folder / FILE).write_text(json.dumps(document))
    read = read_generation(Checkpoint(folder, {}, {}, folder), manifest.decoder.vocab_size, {}, prompt_counts=prompt_counts)
    prompt = msgspec.structs.replace(manifest.prompt, **read._asdict())
    monkeypatch.setattr(pipe, "manifest", msgspec.structs.replace(manifest, prompt=prompt))
    monkeypatch.setattr(model, "generation_config", GenerationConfig(**document))

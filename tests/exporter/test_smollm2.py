"""A real language model, SmolLM2-135M, through the exporter's decoder: the greedy text of transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from foveate.engines import Bundle, PromptEntry
from foveate.exporter.checkpoint import Checkpoint
from foveate.runtime.prompt import PromptEncoder
from models.downloads import SMOLLM2
from tests.downloads import pip_folder
from tests.exporter.text_only import DECODERS, TextAnswers, export_text

pytestmark = pytest.mark.slow

NEW_TOKENS = 40
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea, and one about the mountains.",
    "请用中文介绍一下北京。",
)
BEGINNINGS = (
    "The quick brown fox",
    "def fibonacci(n):\n",
    "In 1969, Neil Armstrong and Buzz Aldrin landed on the Moon. Armstrong was the first to",
)


@dataclass(frozen=True)
class SmolLM2:
    """The checkpoint in transformers, its prompts as token ids, and its bundle."""

    checkpoint: Path
    expected: Any
    tokenizer: Any
    prompts: list[list[int]]
    bundle: Bundle


@pytest.fixture(scope="module")
def smollm2() -> Iterator[SmolLM2]:
    with TemporaryDirectory() as folder:  # gone afterwards: pytest's own would keep a gigabyte of each of the last runs
        yield load(Path(folder))


def load(folder: Path) -> SmolLM2:
    """Reads the GGUF file, saves it as a checkpoint and exports that."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = folder / "checkpoint"
    site = pip_folder(SMOLLM2)
    program = [sys.executable, str(Path(__file__).with_name("read_gguf.py")), str(site / SMOLLM2.file), str(checkpoint)]
    read = subprocess.run(program, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = [tokenizer(beginning)["input_ids"] for beginning in BEGINNINGS] + _chats(checkpoint, tokenizer)
    return SmolLM2(checkpoint, model, tokenizer, prompts, export_text(checkpoint, folder / "smollm2.bundle"))


def _chats(checkpoint: Path, tokenizer: Any) -> list[list[int]]:
    """The questions in the checkpoint's own chat template, by the runtime."""
    entry = PromptEntry(
        chat_template=Checkpoint.open(checkpoint).chat_template(),
        image_token="<file_sep>",
        video_token=None,
        eos_token_ids=(tokenizer.eos_token_id,),
        pad_token_id=0,
    )
    encoder = PromptEncoder(entry, Tokenizer.from_file(str(checkpoint / "tokenizer.json")))
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [encoder.encode(chat).input_ids.tolist() for chat in chats]
    for chat, prompt in zip(chats, prompts, strict=True):
        assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    return prompts


@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_text_is_that_of_transformers(smollm2: SmolLM2, decoder: str) -> None:
    """Prompts of different lengths in one batch, each against its own run in transformers."""
    answers = TextAnswers.open(smollm2.bundle, decoder, smollm2.checkpoint)
    rows = answers.generate(smollm2.prompts, NEW_TOKENS, (smollm2.tokenizer.eos_token_id,))
    for prompt, row in zip(smollm2.prompts, rows, strict=True):
        expected = smollm2.expected.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
        ids = expected[0, len(prompt) :].tolist()
        assert row.tokens == ids
        assert "".join(row.pieces) == smollm2.tokenizer.decode(ids, skip_special_tokens=True)


def test_it_speaks(smollm2: SmolLM2) -> None:
    """The weights are those of a trained model, read right."""
    answers = TextAnswers.open(smollm2.bundle, "decoder", smollm2.checkpoint)
    capital = answers.generate([smollm2.prompts[len(BEGINNINGS)]], NEW_TOKENS, (smollm2.tokenizer.eos_token_id,))[0]
    assert "".join(capital.pieces) == "The capital of France is Paris."
    assert capital.finish_reason == "eos"

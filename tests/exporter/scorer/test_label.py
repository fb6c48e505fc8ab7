"""Labelling prompts that are made by hand: several images of several sizes, and a random model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from foveate.engines import LabelError
from foveate.exporter.checkpoint import TOKENIZER, Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.family import Family
from foveate.exporter.scorer import FEATURES, Example, Label, LabelOptions, LabelResult, label, read_labels
from foveate.exporter.scorer.features import FirstLayer, features
from foveate.exporter.scorer.relevance import margin, relevance
from foveate.runtime import Preparer, Request

QUESTION = "What colour is the circle?"
OPTIONS = LabelOptions(max_new_tokens=3, shard_size=2)


class Scenes:
    """Questions about two noise images of different sizes, the larger one first in every second; notes what is asked for."""

    def __init__(self, folder: Path, right: Callable[[Sequence[int]], bool] = lambda tokens: True) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._right = right
        self.loaded: list[int] = []
        self.answers: list[list[int]] = []
        self.examples: dict[int, Example] = {}

    def __call__(self, family: Family, number: int) -> Example:
        self.loaded.append(number)
        random = np.random.default_rng(number)
        sizes = [(4 * 28, 5 * 28), (6 * 28, 3 * 28)][:: 1 - 2 * (number % 2)]
        pictures = [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
        prepare = Preparer(family.model_type, family.prompt(), family.processor(), self._tokenizer)
        prepared = prepare(Request.ask(QUESTION, pictures))
        self.examples[number] = Example(
            input_ids=prepared.layout.input_ids,
            position_ids=prepared.layout.position_ids,
            next_position=prepared.layout.next_position,
            visual_indices=prepared.layout.visual_indices,
            instruction_indices=prepared.instruction_indices,
            visuals=[visual.feeds for visual in prepared.visuals],
            grids=prepared.grids,
            image=number,
            is_right=self._judge,
        )
        return self.examples[number]

    def _judge(self, tokens: Sequence[int]) -> bool:
        self.answers.append(list(tokens))
        return self._right(tokens)


def run(checkpoint: Path, scenes: Scenes, output: Path, count: int = 1, **changes: Any) -> LabelResult:
    options = LabelOptions(**{"max_new_tokens": 3, "shard_size": 2, **changes})
    return label(checkpoint, scenes, count, "d" * 64, output, options)


def test_a_label_is_of_the_prompt_and_the_answer(checkpoint_folder: Path, tmp_path: Path) -> None:
    scenes = Scenes(checkpoint_folder)
    assert run(checkpoint_folder, scenes, tmp_path / "labels", count=2) == LabelResult(2, 2)
    reference = read_family(Checkpoint.open(checkpoint_folder)).reference()
    for found in read_labels(tmp_path / "labels"):
        example, answer = scenes.examples[found.sample], scenes.answers[found.sample]
        expected = explain(reference, example, answer)
        assert (found.image, found.correct, found.grids) == (example.image, True, tuple(example.grids))
        assert found.features.shape[1] == len(found.relevance) == sum(np.prod(grid) for grid in example.grids)
        np.testing.assert_allclose(found.features, expected.features, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-9)


def explain(reference: Any, example: Example, answer: Sequence[int]) -> Label:
    """The same from the model's own outputs, on the sequence of prompt and answer written out."""
    ids = torch.tensor([*example.input_ids.tolist(), *answer[:-1]])
    visual, rows = example.visual_indices, example.instruction_indices
    embeds = reference.text_embeds(ids).clone()
    embeds[visual] = torch.cat([reference.visual_embeds(feeds) for feeds in example.visuals])
    after = torch.arange(len(answer) - 1) + example.next_position
    positions = torch.cat((torch.from_numpy(example.position_ids), after.expand(3, -1)), dim=1)
    logits, attentions = reference.forward(embeds.requires_grad_(), positions)
    assert logits[len(example.input_ids) - 1 :].argmax(-1).tolist() == answer
    first = FirstLayer(attentions[0][0][:, rows][:, :, visual].detach(), embeds[visual].detach(), embeds[rows].detach())
    mattered = relevance(logits, attentions, answer, margin, torch.abs)[visual]
    return Label(0, 0, True, (), features(first, list(FEATURES)).numpy(), mattered.numpy())


def test_wrong_answers_are_labelled_only_when_asked_for(checkpoint_folder: Path, tmp_path: Path) -> None:
    wrong = Scenes(checkpoint_folder, lambda tokens: False)
    assert run(checkpoint_folder, wrong, tmp_path / "right", count=3) == LabelResult(3, 0)
    assert list(read_labels(tmp_path / "right")) == []
    assert run(checkpoint_folder, wrong, tmp_path / "all", count=3, wrong=True) == LabelResult(3, 3)
    assert [(found.sample, found.correct) for found in read_labels(tmp_path / "all")] == [(0, False), (1, False), (2, False)]


def test_the_token_that_ends_an_answer_is_no_part_of_it(published_folder: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(published_folder, tmp_path / "checkpoint"))
    scenes = Scenes(checkpoint)
    run(checkpoint, scenes, tmp_path / "long", max_new_tokens=6)
    (long,) = scenes.answers
    assert len(long) == 6
    end = next(token for token in long if token != long[0])
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    run(checkpoint, scenes, tmp_path / "short", max_new_tokens=6)
    assert scenes.answers[1] == long[: long.index(end)]
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": long[0]}))
    assert run(checkpoint, scenes, tmp_path / "empty", wrong=True) == LabelResult(1, 0)


def test_a_run_goes_on_with_the_first_range_that_is_missing(checkpoint_folder: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop_at_three(family: Family, number: int) -> Example:
        if number == 3:
            raise StopError
        return scenes(family, number)

    scenes, done = Scenes(checkpoint_folder), list[tuple[int, int]]()
    with pytest.raises(StopError):
        label(checkpoint_folder, stop_at_three, 5, "d" * 64, tmp_path / "labels", OPTIONS)
    assert scenes.loaded == [0, 1, 2]
    result = label(checkpoint_folder, scenes, 5, "d" * 64, tmp_path / "labels", OPTIONS, lambda *step: done.append(step))
    assert scenes.loaded == [0, 1, 2, 2, 3, 4]
    assert result == LabelResult(3, 3)
    assert done == [(3, 5), (4, 5), (5, 5)]
    assert [found.sample for found in read_labels(tmp_path / "labels")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "loss"}, "objective 'loss' is not known. Choose one of logit, margin"),
        ({"contribution": "all"}, "contribution 'all' is not known. Choose one of positive, magnitude"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"limit": 0}, "limit is 0"),
        ({"shard_size": -1}, "shard_size is -1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
    ],
)
def test_options_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        LabelOptions(**changes)

"""The trained reference checkpoints answer held-out prompts token for token as their reference implementations do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import foveate
from benchmarks.identity import REFERENCES, Reference, answer, differing
from models.scenes.tasks import KINDS, Kind, sample_task
from models.scenes.worlds import WORLDS

MODELS = Path(__file__).parents[2] / "models"
QUESTIONS = 8


@pytest.fixture(scope="module", params=list(WORLDS))
def case(request: pytest.FixtureRequest, trained_bundle: Callable[[str], Path]) -> tuple[str, Reference, foveate.Pipeline]:
    name: str = request.param
    return name, REFERENCES[name](MODELS / name), foveate.load(trained_bundle(name))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_reference(case: tuple[str, Reference, foveate.Pipeline], kind: Kind) -> None:
    name, reference, pipe = case
    assert differing(name, reference, pipe, kind, QUESTIONS) == []


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_most_answers_are_right(case: tuple[str, Reference, foveate.Pipeline], kind: Kind, keep: float) -> None:
    name, _, pipe = case
    right = 0
    for index in range(QUESTIONS):
        task = sample_task(WORLDS[name], "validation", 0, index, kind, 1)
        question = task.questions[0]
        right += answer(pipe, task.pictures(), kind, question.text, keep).text.strip() == question.answer
    assert right >= QUESTIONS - 2

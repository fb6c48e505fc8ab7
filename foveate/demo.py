"""The demo: export the reference checkpoint, ask about a few scenes with all, half and a quarter of the visual tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from foveate.runtime import Answer, Pipeline, load
from foveate.runtime.explain import Panel, fit, kept_picture, sheet
from foveate.runtime.picture import Picture
from foveate.samples import Sample

KEEPS = (1.0, 0.5, 0.25)
# Answers are a word or two; a longer allowance would only hide the prompt's share of the KV cache.
_MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Outcome:
    """One question, answered once for each keep ratio."""

    sample: Sample
    answers: dict[float, Answer]
    picture: Path

    def correct(self, keep: float) -> bool:
        return self.sample.answered_by(self.answers[keep].text)


def run(bundle: Path, samples: Sequence[Sample], output: Path, progress: Callable[[str], None]) -> list[Outcome]:
    """Answers every sample at each keep ratio; one picture per sample and `answers.json` go to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with load(bundle, vision_cache_bytes=0) as pipe:  # the table shows what a new image costs
        outcomes = _ask_all(pipe, samples, output, progress)
    facts = [{**msgspec.to_builtins(o.sample), "answers": {k: a.to_dict() for k, a in o.answers.items()}} for o in outcomes]
    (output / "answers.json").write_text(json.dumps(facts, indent=1) + "\n")
    return outcomes


def _ask_all(pipe: Pipeline, samples: Sequence[Sample], output: Path, progress: Callable[[str], None]) -> list[Outcome]:
    for keep in KEEPS:  # the first run of a graph allocates, which would make the first row of the table look slow
        _ask(pipe, samples[0], keep)
    outcomes = []
    for number, sample in enumerate(samples, start=1):
        progress(sample.question)
        answers = {keep: _ask(pipe, sample, keep) for keep in KEEPS}
        (seen,) = pipe.prepare(sample.request()).pictures
        picture = output / f"{number:02d}.png"
        _draw(sample, answers, seen).save(picture)
        outcomes.append(Outcome(sample, answers, picture))
    return outcomes


def _ask(pipe: Pipeline, sample: Sample, keep: float) -> Answer:
    return pipe.generate(sample.request(keep=keep, max_new_tokens=_MAX_NEW_TOKENS))


def _draw(sample: Sample, answers: dict[float, Answer], seen: Picture) -> Image.Image:
    panels = []
    for keep, answer in answers.items():
        kept = np.isin(np.arange(answer.selection.num_visual_tokens), answer.selection.keep_indices)
        picture = kept_picture(fit(seen.image), seen.grid, kept)
        panels.append(Panel(picture, f"keep {keep:g}: {answer.text}"))
    return sheet([panels], sample.question, f"right answer: {sample.answer}")

"""Two backends on the same requests, stage by stage: how far a build is from the graphs it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from foveate.engines import BackendError
from foveate.runtime import Pipeline, Request
from foveate.runtime.budget import Budget

KEEPS = (1.0, 0.5, 0.25)

Progress = Callable[[int, int], None]


@dataclass
class StageDifference:
    """How far one output of a stage is apart, over all requests.

    Attributes:
        stage: `vision`, `score` or `decoder`.
        output: name of the tensor.
        cosine: the smallest cosine similarity of a request; 1 = the same direction.
        max_abs_diff: the largest |difference| of any element.
        scale: the largest |element| of the reference.
    """

    stage: str
    output: str
    cosine: float = 1.0
    max_abs_diff: float = 0.0
    scale: float = 0.0

    def add(self, got: np.ndarray, expected: np.ndarray) -> None:
        a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        similar = float(a @ b) / norm if norm else float(np.array_equal(a, b))
        # NaN compares false with everything: it has to win.
        self.cosine = similar if not similar >= self.cosine else self.cosine
        self.max_abs_diff = float(np.maximum(self.max_abs_diff, np.abs(a - b).max(initial=0.0)))
        self.scale = max(self.scale, float(np.abs(b).max(initial=0.0)))


@dataclass
class Agreement:
    """Answers at one keep ratio, over all requests.

    Attributes:
        keep: share of the visual tokens that stays.
        requests: how many were asked.
        same_tokens: how many got the very same greedy tokens.
        overlap: mean share of the kept visual tokens that both backends kept.
    """

    keep: float
    requests: int = 0
    same_tokens: int = 0
    overlap: float = 0.0

    def add(self, same_tokens: bool, overlap: float) -> None:
        self.overlap = (self.overlap * self.requests + overlap) / (self.requests + 1)
        self.requests += 1
        self.same_tokens += same_tokens


@dataclass(frozen=True)
class CheckReport:
    """What was compared."""

    stages: list[StageDifference] = field(default_factory=list)
    answers: list[Agreement] = field(default_factory=list)

    def require(self, min_cosine: float) -> None:
        """Refuses a stage that is too far off.

        Raises:
            BackendError: names the worst stage.
        """
        for stage in self.stages:
            if not stage.cosine >= min_cosine:
                raise BackendError(
                    f"stage '{stage.stage}', output '{stage.output}': cosine {stage.cosine:.6f} to ONNX Runtime, max |diff| "
                    f"{stage.max_abs_diff:.3g} of {stage.scale:.3g}, expected cosine {min_cosine:g}. Raise the precision."
                )


def check(
    reference: Pipeline,
    other: Pipeline,
    requests: Sequence[Request],
    keeps: Sequence[float] = KEEPS,
    progress: Progress | None = None,
) -> CheckReport:
    """Compares `other` with `reference`. Each stage gets the reference's inputs, so that no stage answers for another.

    Args:
        reference: the bundle on ONNX Runtime.
        other: the same bundle on another backend.
        requests: what is asked, greedily; their budgets are not used.
        keeps: the budgets to ask with.
        progress: told how many of the requests are done.

    Raises:
        RequestError: a request that can't be served.
        BackendError: a graph failed.
    """
    stages: dict[tuple[str, str], StageDifference] = {}
    answers = {keep: Agreement(keep) for keep in keeps}
    for done, request in enumerate(requests, start=1):
        for stage, output, got, expected in _stages(reference, other, request):
            stages.setdefault((stage, output), StageDifference(stage, output)).add(got, expected)
        for keep in keeps:
            answers[keep].add(*_answers(reference, other, with_keep(request, keep)))
        if progress:
            progress(done, len(requests))
    return CheckReport(list(stages.values()), list(answers.values()))


def with_keep(request: Request, keep: float) -> Request:
    """The request with another budget."""
    return replace(request, budget=Budget(keep))


_Pair = tuple[str, str, np.ndarray, np.ndarray]
"""Stage, output, what the other backend gave, what the reference gave."""


def _stages(reference: Pipeline, other: Pipeline, request: Request) -> Iterator[_Pair]:
    prepared = reference.prepare(request)
    embeds = reference.vision(prepared)
    if prepared.num_visual_tokens:
        yield "vision", "visual_embeds", _host(other.vision(prepared)), _host(embeds)
        found, expected = other.score(prepared, embeds), reference.score(prepared, embeds)
        for name in ("scores", "attention"):
            yield "score", name, _host(getattr(found, name)), _host(getattr(expected, name))
    yield "decoder", "logits", other.first_logits(prepared, embeds), reference.first_logits(prepared, embeds)


def _answers(reference: Pipeline, other: Pipeline, request: Request) -> tuple[bool, float]:
    """Whether the tokens are the same, and how much of the kept sets is."""
    expected, got = reference.generate(request), other.generate(request)
    kept, theirs = set(expected.selection.keep_indices.tolist()), set(got.selection.keep_indices.tolist())
    return expected.tokens == got.tokens, len(kept & theirs) / len(kept) if kept else 1.0


def _host(array: object) -> np.ndarray:
    return np.asarray(array, np.float32)

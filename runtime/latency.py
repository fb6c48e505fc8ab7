"""Budgets in milliseconds: from the latencies that were measured where the bundle runs now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foveate.engines import Bundle, Environment, FoveateError, LatencyEntry, LatencyPoint, RequestError, read_latencies
from foveate.engines.builds.store import ENGINES
from foveate.runtime.budget import Budget


class LatencyModel:
    """Predicts stages that hang on the number of tokens: straight lines between the measured medians, on with the last slope.

    Args:
        entry: the measurement.
    """

    def __init__(self, entry: LatencyEntry) -> None:
        self._vision = _Line(entry.vision)
        self._score = _Line(entry.score)
        self._prefill = _Line(entry.prefill)

    def vision_ms(self, visual_tokens: int) -> float:
        """One run of the vision graph. Its attention is quadratic, so between two points this is an estimate, a little high;
        beyond the last one it is low."""
        return self._vision(visual_tokens)

    def score_ms(self, visual_tokens: int) -> float:
        """Scoring and selecting."""
        return self._score(visual_tokens)

    def prefill_ms(self, prompt_tokens: int) -> float:
        """Embedding and prefill."""
        return self._prefill(prompt_tokens)

    def most_tokens(self, text_tokens: int, visual_tokens: int, ms: float) -> int:
        """How many visual tokens a prefill of `ms` takes beside the text, at most `visual_tokens`; -1 if not even the text."""
        return most_within(ms, visual_tokens, lambda tokens: self.prefill_ms(text_tokens + tokens))


def most_within(ms: float, most: int, takes_ms: Callable[[int], float]) -> int:
    """The largest number from 0 to `most` that takes at most `ms`, by a function that never falls; -1 where 0 takes longer."""
    low, high = -1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes_ms(middle) <= ms else (low, middle - 1)
    return low


class _Line:
    """A function of tokens through measured points, made to rise: a median that is lower at more tokens is noise."""

    def __init__(self, points: Sequence[LatencyPoint]) -> None:
        ordered = dict(sorted((point.tokens, point.ms) for point in points))
        self._tokens = np.array(list(ordered), float)
        self._ms = np.maximum.accumulate(list(ordered.values()))
        if len(ordered) == 1:  # which says no more than that the time is proportional
            self._tokens, self._ms = np.append(0, self._tokens), np.append(0, self._ms)
        self._slope = float((self._ms[-1] - self._ms[-2]) / (self._tokens[-1] - self._tokens[-2]))

    def __call__(self, tokens: int) -> float:
        beyond = max(0.0, tokens - float(self._tokens[-1]))
        return float(np.interp(tokens, self._tokens, self._ms)) + beyond * self._slope


@dataclass(frozen=True)
class Unmeasured:
    """In place of a `LatencyModel`: nothing was measured in this environment, or what was can't be read."""

    error: FoveateError | None = None


@dataclass(frozen=True)
class Plan:
    """What a budget comes to, before anything is scored.

    Attributes:
        budget: without milliseconds.
        reason: why everything stays although the request asked for less; empty where that is not so.
        predicted_ttft_ms: None where nobody asked.
    """

    budget: Budget
    reason: str = ""
    predicted_ttft_ms: float | None = None


@dataclass(frozen=True)
class Sizes:
    """A request before its budget: tokens of its prompt, what it took so far, and whether its selector wants scores."""

    visual_tokens: int
    text_tokens: int
    spent_ms: float
    needs_scores: bool

    @property
    def all_tokens(self) -> int:
        return self.visual_tokens + self.text_tokens


def plan(budget: Budget, sizes: Sizes, model: LatencyModel | Unmeasured | None) -> Plan:
    """Turns milliseconds into tokens, and with `only_if_faster` keeps everything where scoring would take longer than pruning
    saves. Other budgets stay what they are, whatever was measured.

    Args:
        budget: of the request.
        sizes: of the request.
        model: latencies measured in this environment, or why there are none.

    Raises:
        RequestError: the budget needs latencies and there are none, or it leaves no time.
    """
    if budget.ttft_ms is not None:
        return _plan_milliseconds(budget.ttft_ms, sizes, measured(model, f"the budget is {budget.ttft_ms:g} ms"))
    wanted, budget = budget.only_if_faster, replace(budget, only_if_faster=False)
    if not wanted or budget.keeps_all(sizes.visual_tokens) or not sizes.needs_scores:
        return Plan(budget)
    model = measured(model, "the budget prunes only if that is faster")
    kept = budget.count(np.empty(sizes.visual_tokens))
    score_ms = model.score_ms(sizes.visual_tokens)
    saved_ms = model.prefill_ms(sizes.all_tokens) - model.prefill_ms(sizes.text_tokens + kept)
    if score_ms < saved_ms:
        return Plan(budget)
    return Plan(Budget(), f"scoring takes about {score_ms:.1f} ms and would save {saved_ms:.1f} ms of prefill")


def measured(model: LatencyModel | Unmeasured | None, fact: str) -> LatencyModel:
    """The model, which something can't be planned without.

    Args:
        model: latencies measured in this environment, or why there are none.
        fact: what needs them.

    Raises:
        RequestError: there are none.
        FoveateError: they can't be read.
    """
    if isinstance(model, LatencyModel):
        return model
    if model is not None and model.error is not None:
        raise type(model.error)(f"{fact}, and {model.error}") from model.error
    raise RequestError(
        f"{fact}, and this bundle has no latencies of this machine and these options. "
        "Measure them with 'foveate profile BUNDLE --save', or set keep alone."
    )


def _plan_milliseconds(ttft_ms: float, sizes: Sizes, model: LatencyModel) -> Plan:
    whole_ms = sizes.spent_ms + model.prefill_ms(sizes.all_tokens)
    if whole_ms <= ttft_ms or not sizes.visual_tokens:
        return Plan(Budget(), f"all tokens fit into {ttft_ms:g} ms" if whole_ms <= ttft_ms else "", whole_ms)
    before_ms = sizes.spent_ms + (model.score_ms(sizes.visual_tokens) if sizes.needs_scores else 0.0)
    kept = model.most_tokens(sizes.text_tokens, sizes.visual_tokens - 1, ttft_ms - before_ms)
    if kept < 1:
        least_ms = before_ms + model.prefill_ms(sizes.text_tokens + 1)
        raise RequestError(
            f"the budget is {ttft_ms:g} ms, and with a single visual token the answer begins after about {least_ms:.0f} ms, "
            f"{sizes.spent_ms:.0f} ms of them before scoring. Raise it, or use smaller images."
        )
    return Plan(Budget(tokens=kept), predicted_ttft_ms=before_ms + model.prefill_ms(sizes.text_tokens + kept))


def find_model(bundle: Bundle, engines: Path | None, environment: Environment) -> LatencyModel | Unmeasured:
    """That of the environment, if it was measured. A file that can't be read stops only those budgets that need it.

    Args:
        bundle: the bundle.
        engines: folder of its engines; None is its own.
        environment: where its graphs run.
    """
    try:
        entries = read_latencies(engines or bundle.path / ENGINES, bundle.sha256)
    except FoveateError as error:
        return Unmeasured(error)
    return next((LatencyModel(entry) for entry in entries if entry.environment == environment), Unmeasured())

"""How the next token is drawn: settings are values, and a sampler is a function of the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from foveate.engines import BackendError, RequestError

Sampler = Callable[[np.ndarray], int]
"""Draws a token from `logits [vocab_size]`."""

NAN_LOGITS = "the decoder gave NaN logits. Export or build the bundle again at a higher precision."


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Applied in this order: temperature, top_k, top_p.

    Attributes:
        temperature: 0 takes the likeliest token (greedy).
        top_k: only the k likeliest tokens; None for all.
        top_p: only the likeliest tokens whose probabilities reach this share, 0 < top_p <= 1.
        seed: the same seed draws the same tokens; None draws anew each time.

    Raises:
        RequestError: a value out of its range, or `top_k` or `top_p` without a temperature.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, _is(self.temperature, Real) and 0 <= self.temperature < math.inf, "0 or above")
        _check(
            "top_k", self.top_k, self.top_k is None or (_is(self.top_k, Integral) and self.top_k >= 1), "1 or above, or None"
        )
        _check("top_p", self.top_p, _is(self.top_p, Real) and 0 < self.top_p <= 1, "above 0 and up to 1")
        _check("seed", self.seed, self.seed is None or (_is(self.seed, Integral) and self.seed >= 0), "0 or above, or None")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise RequestError("top_k and top_p do nothing at temperature 0. Set a temperature above 0 or drop them.")

    def sampler(self) -> Sampler:
        """A sampler with a random state of its own."""
        if self.temperature == 0:
            return greedy
        generator = np.random.default_rng(self.seed)
        return lambda logits: self._draw(logits, generator)

    def _draw(self, logits: np.ndarray, generator: np.random.Generator) -> int:
        tokens, probabilities = self.support(logits)
        cumulative = np.cumsum(probabilities)
        drawn = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
        return int(tokens[min(drawn, len(tokens) - 1)])

    def support(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that may be drawn, likeliest first, and their probabilities (sum 1); needs a temperature above 0.

        Raises:
            BackendError: the logits hold NaN.
        """
        best = logits[greedy(logits)]
        if self.top_k is not None and self.top_k < len(logits):
            tokens = np.argpartition(logits, -self.top_k)[-self.top_k :]
        else:
            tokens = np.arange(len(logits))
        tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
        probabilities = np.exp((logits[tokens].astype(np.float64) - best) / self.temperature)
        cumulative = np.cumsum(probabilities)
        count = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1 if self.top_p < 1 else len(tokens)
        return tokens[:count], probabilities[:count] / cumulative[count - 1]


def greedy(logits: np.ndarray) -> int:
    """The likeliest token; the lowest of equals.

    Raises:
        BackendError: the logits hold NaN.
    """
    token = int(np.argmax(logits))
    if np.isnan(logits[token]):  # argmax stops at the first NaN, so this one look finds any
        raise BackendError(NAN_LOGITS)
    return token


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise RequestError(f"{name} is {value!r}, expected a number {expected}. Leave it out for the default.")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

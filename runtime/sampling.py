"""How the next token is drawn: settings are values, and a sampler is a function of the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foveate.engines import NAN_LOGITS, BackendError, GenerationEntry, RequestError
from foveate.runtime.values import flag, items, number, settle, share, token_ids, unusable, whole

Sampler = Callable[[np.ndarray], int]
"""Draws a token from `logits [vocab_size]`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Applied in this order: what forbids tokens or changes their logits, temperature, top_k, top_p.

    Where a setting that forbids or changes is None, the checkpoint's own holds, of its generation_config.json: those are part
    of greedy decoding too, as in transformers. Tokens are drawn at random only where the request says so.

    Attributes:
        temperature: 0 takes the likeliest token (greedy).
        top_k: only the k likeliest tokens; None for all.
        top_p: only the likeliest tokens whose probabilities reach this share, 0 < top_p <= 1.
        seed: the same seed draws the same tokens; None draws anew each time.
        of_checkpoint: draw with the temperature, top_k and top_p of the checkpoint, as transformers does with `do_sample=True`.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely; 1 for none.
        no_repeat_ngram_size: no run of so many tokens comes twice in prompt and answer; 0 allows all.
        min_new_tokens: the answer does not end before.
        suppress_tokens: tokens that are never drawn.
        begin_suppress_tokens: tokens that no answer begins with.
        bad_words_ids: sequences of tokens that are never drawn; what ends an answer stays allowed.
        presence_penalty: -2 to 2, taken off the logits of tokens that the answer has so far, as OpenAI defines it.
        frequency_penalty: -2 to 2, taken off them as often as each is there.
        logit_bias: token id -> -100 to 100, added to its logit.

    The last three are of a request alone: no checkpoint has them.

    Raises:
        RequestError: a value out of its range, `top_k` or `top_p` without a temperature, or any of the three beside
            `of_checkpoint`.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    of_checkpoint: bool = False
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        settle(
            self,
            temperature=number("temperature", self.temperature, lambda value: value >= 0, "of 0 or above"),
            top_p=share("top_p", self.top_p),
            of_checkpoint=flag("of_checkpoint", self.of_checkpoint),
            **{name: check(name, getattr(self, name)) for name, check in _OWN_CHANGES.items()},
        )
        checks: dict[str, Callable[[str, Any], object]] = {
            "top_k": lambda name, value: whole(name, value, 1),
            "seed": lambda name, value: whole(name, value, 0),
            **_CHANGES,
        }
        given = {name: getattr(self, name) for name in checks}
        settle(self, **{name: checks[name](name, value) for name, value in given.items() if value is not None})
        drawn = (self.temperature, self.top_k, self.top_p)
        if self.of_checkpoint and drawn != (0, None, 1):
            fact = "temperature, top_k and top_p are given beside of_checkpoint, which has its own"
            raise RequestError(f"{fact}. Give either.", options=("sample", "temperature", "top_k", "top_p"))
        if self.temperature == 0 and drawn != (0, None, 1):
            fact = "top_k and top_p do nothing at temperature 0"
            raise RequestError(f"{fact}. Set a temperature above 0 or drop them.", options=("temperature",))

    def over(self, checkpoint: GenerationEntry) -> Sampling:
        """These settings, with the checkpoint's where they leave it to it.

        Raises:
            RequestError: `of_checkpoint`, and its authors sample in a way that the runtime does not know.
        """
        changes = {name: getattr(checkpoint, name) for name in _CHANGES if getattr(self, name) is None}
        if self.of_checkpoint and checkpoint.unsupported_sampling:
            raise RequestError(
                f"the checkpoint samples with {', '.join(checkpoint.unsupported_sampling)}, which the runtime does not know. "
                "Give temperature, top_k and top_p in place of of_checkpoint.",
                options=("temperature", "top_k", "top_p", "sample"),
            )
        if self.of_checkpoint and checkpoint.temperature:
            changes |= {"temperature": checkpoint.temperature, "top_k": checkpoint.top_k or None, "top_p": checkpoint.top_p}
        return replace(self, of_checkpoint=False, **changes)

    def changes(self) -> dict[str, Any]:
        """The settings of `LogitsProcessor`."""
        return {name: getattr(self, name) for name in (*_CHANGES, *_OWN_CHANGES)}

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
        tokens = tokens[logits[tokens] > -np.inf]  # what is forbidden
        probabilities = np.exp((logits[tokens].astype(np.float64) - best) / self.temperature)
        cumulative = np.cumsum(probabilities)
        count = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1 if self.top_p < 1 else len(tokens)
        return tokens[:count], probabilities[:count] / cumulative[count - 1]


def _words(name: str, value: object) -> tuple[tuple[int, ...], ...]:
    words = tuple(token_ids(name, word) for word in items(name, value, "a list of lists of token ids"))
    if () in words:
        raise RequestError(f"{name} holds an empty list, expected lists of token ids. Take it out.")
    return words


def _penalty(name: str, value: object) -> float:
    return number(name, value, lambda found: -2 <= found <= 2, "of -2 to 2")


def _biases(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise unusable(name, value, "a mapping of token ids to numbers")
    entry = f"an entry of {name}"
    return {
        whole(f"a token of {name}", token, 0): number(entry, bias, lambda found: -100 <= found <= 100, "of -100 to 100")
        for token, bias in value.items()
    }


_CHANGES: dict[str, Callable[[str, Any], object]] = {
    "repetition_penalty": lambda name, value: number(name, value, lambda found: found > 0, "above 0"),
    "no_repeat_ngram_size": lambda name, value: whole(name, value, 0),
    "min_new_tokens": lambda name, value: whole(name, value, 0),
    "suppress_tokens": token_ids,
    "begin_suppress_tokens": token_ids,
    "bad_words_ids": _words,
}
"""Settings that the checkpoint may have too, each with what checks a value and makes it plain."""
_OWN_CHANGES: dict[str, Callable[[str, Any], object]] = {
    "presence_penalty": _penalty,
    "frequency_penalty": _penalty,
    "logit_bias": _biases,
}
"""Settings of a request alone."""


def greedy(logits: np.ndarray) -> int:
    """The likeliest token; the lowest of equals.

    Raises:
        BackendError: the logits hold NaN.
    """
    token = int(np.argmax(logits))
    if np.isnan(logits[token]):  # argmax stops at the first NaN, so this one look finds any
        raise BackendError(NAN_LOGITS)
    return token

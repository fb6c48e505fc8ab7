"""What is done to logits before a token is drawn: transformers' LogitsProcessors of the same effects, on numpy arrays, and what
OpenAI's API has beside them. What they say of the model's own probabilities is here too.

The functions change `logits [vocab_size]` float32 in place. `ids` are those of the prompt and of the answer so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foveate.engines import RequestError

Words = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class LogitsProcessor:
    """The settings of `Sampling` of these names for one answer. What shifts logits goes first: repetition_penalty, then
    presence_penalty and frequency_penalty, then logit_bias. What forbids tokens follows in transformers' order, so that no bias
    allows one again.

    Attributes:
        prompt_ids: `[prompt_tokens]` int64, the unpruned prompt.
        eos_token_ids: what ends the answer.
    """

    prompt_ids: np.ndarray
    eos_token_ids: Sequence[int]
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Words = ()
    min_new_tokens: int = 0
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether it does anything to any logits."""
        forbidding = (self.no_repeat_ngram_size, self.bad_words_ids, self.suppress_tokens, self.begin_suppress_tokens)
        shifting = (self.repetition_penalty != 1, self.presence_penalty, self.frequency_penalty, self.logit_bias)
        return any(forbidding) or any(shifting) or bool(self.min_new_tokens and self.eos_token_ids)

    def __call__(self, tokens: Sequence[int], logits: np.ndarray) -> np.ndarray:
        """What to draw the next token from.

        Args:
            tokens: the answer so far.
            logits: `[vocab_size]` float32; left as they are.

        Raises:
            RequestError: no token is left.
        """
        ids = np.concatenate([self.prompt_ids, np.array(tokens, np.int64)])
        logits = np.array(logits)
        penalise_repetition(logits, ids, self.repetition_penalty)
        penalise_presence(logits, tokens, self.presence_penalty, self.frequency_penalty)
        add_bias(logits, self.logit_bias)
        forbid_ngrams(logits, ids, self.no_repeat_ngram_size)
        forbid_words(logits, ids, [word for word in self.bad_words_ids if word not in {(eos,) for eos in self.eos_token_ids}])
        if len(tokens) < self.min_new_tokens:
            forbid(logits, self.eos_token_ids)
        forbid(logits, self.suppress_tokens)
        if not tokens:
            forbid(logits, self.begin_suppress_tokens)
        if np.isneginf(logits).all():
            raise RequestError(
                "every token is forbidden. Drop some of suppress_tokens, bad_words_ids, no_repeat_ngram_size or min_new_tokens."
            )
        return logits


def penalise_repetition(logits: np.ndarray, ids: np.ndarray, penalty: float) -> None:
    """Makes tokens that were there less likely, above 1; of CTRL (https://arxiv.org/abs/1909.05858)."""
    if penalty != 1:
        seen = ids[ids < len(logits)]
        found = logits[seen]
        logits[seen] = np.where(found < 0, found * np.float32(penalty), found / np.float32(penalty))


def penalise_presence(logits: np.ndarray, tokens: Sequence[int], presence: float, frequency: float) -> None:
    """Takes `presence + frequency * count` off the logit of each token that the answer has, as OpenAI defines both."""
    if tokens and (presence or frequency):
        seen, counts = np.unique(np.array(tokens, np.int64), return_counts=True)
        logits[seen] -= (presence + frequency * counts).astype(np.float32)


def add_bias(logits: np.ndarray, bias: Mapping[int, float]) -> None:
    """Adds to the logits of some tokens."""
    if bias:
        logits[list(bias)] += np.array(list(bias.values()), np.float32)


def forbid_ngrams(logits: np.ndarray, ids: np.ndarray, size: int) -> None:
    """Forbids whatever would repeat a run of `size` tokens; 0 allows all."""
    if not 0 < size <= len(ids):
        return
    windows = np.lib.stride_tricks.sliding_window_view(ids, size)
    begun = (windows[:, :-1] == ids[len(ids) - size + 1 :]).all(axis=1)
    forbid(logits, windows[begun, -1])


def forbid_words(logits: np.ndarray, ids: np.ndarray, words: Sequence[Sequence[int]]) -> None:
    """Forbids the last token of each sequence whose other tokens were the last ones."""
    for *begin, last in words:
        if len(begin) <= len(ids) and ids[len(ids) - len(begin) :].tolist() == begin:
            forbid(logits, (last,))


def forbid(logits: np.ndarray, tokens: Sequence[int] | np.ndarray) -> None:
    """Makes tokens impossible; those beyond the table are so already."""
    chosen = np.asarray(tokens, np.int64)
    logits[chosen[chosen < len(logits)]] = -np.inf


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities that `logits [vocab_size]` give, float64."""
    below: np.ndarray = logits.astype(np.float64) - logits.max()
    below -= np.log(np.exp(below).sum())
    return below


def likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """The `count` likeliest tokens, likeliest first; the lower of equals goes first."""
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(logits, -count)[-count]
    tokens = np.flatnonzero(logits >= least)
    return tokens[np.argsort(-logits[tokens], kind="stable")][:count]

"""Answers that a grammar holds: what is masked, when they end, and that each answer has a state of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from foveate.engines import RequestError
from foveate.runtime import Pipeline, Request, Sampling

QUESTION = "What colour is the circle on the left?"


@dataclass
class OneOf:
    """Answers that are one of some sequences of tokens. Where a sequence is whole, `ends` may follow it."""

    sequences: Sequence[Sequence[int]]
    ends: Sequence[int] = ()
    states: list[OneOfState] = field(default_factory=list)

    def start(self) -> OneOfState:
        self.states.append(OneOfState(self))
        return self.states[-1]


@dataclass
class OneOfState:
    grammar: OneOf
    tokens: list[int] = field(default_factory=list)

    @property
    def following(self) -> set[int]:
        here = len(self.tokens)
        begun = [sequence for sequence in self.grammar.sequences if list(sequence[:here]) == self.tokens]
        inside = {sequence[here] for sequence in begun if len(sequence) > here}
        return inside | ({*self.grammar.ends} if any(len(sequence) == here for sequence in begun) else set())

    @property
    def finished(self) -> bool:
        return self.following <= {*self.grammar.ends}

    def mask(self, logits: np.ndarray) -> None:
        kept = {token: logits[token] for token in self.following}
        logits[:] = -np.inf
        for token, logit in kept.items():
            logits[token] = logit

    def accept(self, token: int) -> None:
        assert token in self.following
        self.tokens.append(token)


def ask(grammar: Any, seed: int = 0, max_new_tokens: int = 6, **options: Any) -> Request:
    image = np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    return Request.ask(QUESTION, image, max_new_tokens=max_new_tokens, grammar=grammar, **options)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=2.0, seed=1), Sampling(repetition_penalty=1.3)])
def test_the_answer_is_one_that_the_grammar_allows(sampling: Sampling | None, pipe: Pipeline) -> None:
    grammar = OneOf([(5, 6, 7), (8, 9)])
    answer = pipe.generate(ask(grammar, sampling=sampling))
    assert answer.tokens in grammar.sequences
    assert answer.finish_reason == "stop"
    assert grammar.states[0].tokens == list(answer.tokens)
    assert len(answer.timings.decode_ms) == len(answer.tokens) - 1  # no step for an end that is certain


def test_the_end_is_the_models_choice_only_where_the_grammar_allows_it(pipe: Pipeline) -> None:
    (eos,) = pipe.manifest.prompt.eos_token_ids
    for bias, expected in ((100, ((5, 6, eos), "eos")), (-100, ((5, 6, 7), "stop"))):
        answer = pipe.generate(ask(OneOf([(5, 6), (5, 6, 7)], [eos]), sampling=Sampling(logit_bias={eos: bias})))
        assert (answer.tokens, answer.finish_reason) == expected


def test_an_answer_that_is_cut_says_so(pipe: Pipeline) -> None:
    answer = pipe.generate(ask(OneOf([(5, 6, 7)]), max_new_tokens=2))
    assert (answer.tokens, answer.finish_reason) == ((5, 6), "length")


def test_the_last_token_that_fits_may_finish_it(pipe: Pipeline) -> None:
    assert pipe.generate(ask(OneOf([(5, 6)]), max_new_tokens=2)).finish_reason == "stop"


def test_answers_of_a_batch_have_a_state_each(pipe: Pipeline) -> None:
    grammar = OneOf([(5, 6, 7), (8, 9), (10,), (8, 5, 5)])
    requests = [ask(grammar, seed, sampling=Sampling(temperature=3.0, seed=seed)) for seed in range(4)]
    requests.append(ask(None, 1))
    batch = pipe.generate_batch(requests)
    assert [answer.tokens for answer in batch] == [pipe.generate(request).tokens for request in requests]
    assert all(answer.tokens in grammar.sequences for answer in batch[:4])
    assert len(grammar.states) == 8


def test_logprobs_are_those_before_the_mask(pipe: Pipeline) -> None:
    free = pipe.generate(ask(None, logprobs=1, ignore_eos=True))
    held = pipe.generate(ask(OneOf([(5, 6)]), logprobs=1))
    assert held.logprobs[0].top_logprobs == free.logprobs[0].top_logprobs
    assert held.logprobs[0].logprob < -1e-3  # though nothing else was allowed


def test_a_grammar_and_a_sampling_that_leave_nothing_are_an_error(pipe: Pipeline) -> None:
    request = ask(OneOf([(5, 6)]), sampling=Sampling(suppress_tokens=[5]))
    with pytest.raises(RequestError, match="the grammar allows no token that the sampling allows"):
        pipe.generate(request)


def test_a_finished_grammar_ends_the_answer_before_min_new_tokens(pipe: Pipeline) -> None:
    answer = pipe.generate(ask(OneOf([(5, 6)]), sampling=Sampling(min_new_tokens=4)))
    assert (answer.tokens, answer.finish_reason) == ((5, 6), "stop")


def test_what_is_no_grammar_is_refused() -> None:
    for value in ("json", 3, {"type": "object"}):
        with pytest.raises(RequestError, match=r"grammar is .*, expected a Grammar"):
            Request.ask("What?", grammar=value)
    with pytest.raises(RequestError, match="ignore_eos draws max_new_tokens tokens"):
        Request.ask("What?", grammar=OneOf([(5,)]), ignore_eos=True)

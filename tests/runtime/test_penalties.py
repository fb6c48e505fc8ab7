"""Penalties and biases of OpenAI's API: against their definition, and end to end."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import GenerationEntry, RequestError
from foveate.runtime import Pipeline, Request, Sampling
from foveate.runtime.logits import LogitsProcessor

QUESTION = "What colour is the circle on the left?"
VOCAB = 12

tokens = st.integers(0, VOCAB - 1)
penalties = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 2.0])
logits_arrays = st.lists(st.floats(-30, 30, width=32), min_size=VOCAB, max_size=VOCAB).map(lambda x: np.array(x, np.float32))


def processor(prompt: list[int], **settings: Any) -> LogitsProcessor:
    sampling = Sampling(**settings).over(GenerationEntry())
    return LogitsProcessor(np.array(prompt, np.int64), (), **sampling.changes())


@given(
    st.lists(tokens, max_size=6),
    st.lists(tokens, max_size=20),
    penalties,
    penalties,
    st.dictionaries(tokens, st.floats(-100, 100)),
    logits_arrays,
)
def test_logits_are_those_of_the_definition(
    prompt: list[int], answer: list[int], presence: float, frequency: float, bias: dict[int, float], logits: np.ndarray
) -> None:
    """Token by token, as OpenAI writes it down; the prompt counts for nothing."""
    before = logits.copy()
    made = processor(prompt, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias)
    expected = [
        float(logits[token])
        - answer.count(token) * frequency
        - float(answer.count(token) > 0) * presence
        + float(bias.get(token, 0))
        for token in range(VOCAB)
    ]
    np.testing.assert_allclose(made(answer, logits), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(logits, before)
    assert made.changes == bool(presence or frequency or bias)


def test_a_bias_allows_nothing_that_is_forbidden_and_comes_after_the_penalties() -> None:
    made = processor([], logit_bias={3: 100, 4: 5}, suppress_tokens=[3], repetition_penalty=2.0, presence_penalty=1.0)
    drawn_from = made([4], np.full(VOCAB, 2.0, np.float32))
    assert drawn_from[3] == -np.inf
    assert drawn_from[4] == 2 / 2 - 1 + 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("presence_penalty", "frequency_penalty") for value in (-2.1, 3, np.nan, "1", None, True)],
        *[("logit_bias", value) for value in (None, 3, [3], [(3, 1)], {-1: 1}, {"3": 1}, {3: 101}, {3: np.nan}, {3: None})],
    ],
)
def test_odd_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{name}.*expected"):
        Sampling(**{name: value})


def test_they_are_plain_numbers_and_no_setting_of_a_checkpoint() -> None:
    sampling = Sampling(presence_penalty=np.float32(1), frequency_penalty=np.int64(-1), logit_bias={np.int32(3): np.int8(7)})
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (1.0, -1.0, {3: 7.0})
    assert [type(item) for pair in sampling.logit_bias.items() for item in pair] == [int, float]
    assert sampling.over(GenerationEntry(repetition_penalty=1.5)).changes()["presence_penalty"] == 1.0
    assert not {"presence_penalty", "frequency_penalty", "logit_bias"} & set(GenerationEntry.__struct_fields__)
    assert hash(Sampling(logit_bias={1: 2.0})) == hash(Sampling(logit_bias={np.int64(1): 2}))


def test_answers_follow_them(pipe: Pipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)

    def ask(**settings: Any) -> tuple[int, ...]:
        sampling = Sampling(**settings)
        request = Request.ask(QUESTION, image, max_new_tokens=6, sampling=sampling, ignore_eos=True, logprobs=0)
        return pipe.generate(request).tokens

    plain = ask()
    other = next(token for token in range(pipe.manifest.decoder.vocab_size) if token not in plain)
    assert set(ask(logit_bias={other: 100})) == {other}
    assert ask(logit_bias={plain[0]: -100})[0] != plain[0]
    assert ask(logit_bias={other: 100}, suppress_tokens=[other])[0] == plain[0]
    favoured = {other: 4.0, plain[0]: 4.0}
    assert ask(logit_bias=favoured, frequency_penalty=2) != ask(logit_bias=favoured)
    assert len(set(ask(presence_penalty=-2))) <= len(set(ask(presence_penalty=2)))


def test_a_token_beyond_the_table_is_refused_before_the_work(pipe: Pipeline) -> None:
    vocab = pipe.manifest.decoder.vocab_size
    message = re.escape(f"the sampling names token {vocab}, the model has 0 to {vocab - 1}. Take it out")
    with pytest.raises(RequestError, match=message):
        pipe.generate(Request.ask(QUESTION, sampling=Sampling(logit_bias={vocab: 1})))

"""Log probabilities: the model's own, whatever the sampling does; against torch's log_softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import NextTokens, RequestError
from foveate.runtime import Pipeline, Request, Sampling
from foveate.runtime.logits import likeliest, log_probabilities
from foveate.runtime.sequence import TokenSequence

QUESTION = "What colour is the circle on the left?"
logits_arrays = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30).map(lambda x: np.array(x, np.float32))


def ask(**options: Any) -> Request:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    return Request.ask(QUESTION, image, max_new_tokens=4, ignore_eos=True, **options)


@given(logits_arrays)
def test_they_are_torchs(logits: np.ndarray) -> None:
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    found = log_probabilities(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@given(logits_arrays, st.integers(0, 40))
def test_the_likeliest_come_first_and_the_lower_of_equals(logits: np.ndarray, count: int) -> None:
    expected = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:count]
    assert likeliest(logits, count).tolist() == expected


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.5, seed=1), Sampling(repetition_penalty=1.3, logit_bias={5: 30})]
)
@pytest.mark.parametrize("count", [0, 1, 20])
def test_an_answer_has_those_of_the_models_logits(
    sampling: Sampling, count: int, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    draw = TokenSequence.draw

    def look(self: TokenSequence, following: NextTokens, slot: int) -> Any:
        seen.append(following.logits[slot].copy())
        return draw(self, following, slot)

    monkeypatch.setattr(TokenSequence, "draw", look)
    stream = pipe.stream(ask(sampling=sampling, logprobs=count))
    chunks = list(stream)
    (answer,) = stream.answers()
    assert [one.token_id for one in answer.logprobs] == list(answer.tokens)
    for chunk, one, logits in zip(chunks, answer.logprobs, seen, strict=True):
        expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
        assert (chunk.logprob, chunk.top_logprobs) == (one.logprob, one.top_logprobs)
        assert one.logprob == pytest.approx(float(expected[one.token_id]), abs=1e-12)
        best = expected.topk(count)
        assert [value for _, value in one.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-12)
        assert [float(expected[token]) for token, _ in one.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-12)
    monkeypatch.undo()
    assert answer.tokens == pipe.generate(ask(sampling=sampling)).tokens
    assert [one["token_id"] for one in answer.to_dict()["logprobs"]] == list(answer.tokens)


def test_they_are_those_of_transformers(pipe: Pipeline, reference: Any) -> None:
    request = ask(logprobs=0)
    answer = pipe.generate(request)
    inputs = reference.inputs(request.messages, request.images)
    output = reference.model.generate(
        **inputs, do_sample=False, max_new_tokens=4, output_logits=True, return_dict_in_generate=True, eos_token_id=-1
    )
    expected = [
        torch.log_softmax(logits[0].double(), -1)[token] for logits, token in zip(output.logits, answer.tokens, strict=True)
    ]
    assert [one.logprob for one in answer.logprobs] == pytest.approx([float(value) for value in expected], abs=1e-4)


def test_who_does_not_ask_gets_none_and_leaves_the_logits_where_they_are(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: NextTokens) -> np.ndarray:
        raise AssertionError("the logits were brought to the host")

    monkeypatch.setattr(NextTokens, "logits", property(refuse))
    stream = pipe.stream(ask())
    assert all((chunk.logprob, chunk.top_logprobs) == (None, ()) for chunk in stream)
    assert stream.answers()[0].logprobs == ()


@pytest.mark.parametrize("value", [-1, 21, 1.0, "3", True])
def test_odd_numbers_are_refused(value: Any) -> None:
    with pytest.raises(RequestError, match=r"logprobs is .*, expected a whole number"):
        Request.ask("What?", logprobs=value)

"""What changes logits, stops answers and samples: transformers' processors, and the checkpoint's word end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

from foveate.engines import BackendError, GenerationEntry, RequestError, SessionOptions
from foveate.runtime import Pipeline, Request, Sampling, load
from foveate.runtime.logits import LogitsProcessor, forbid_ngrams, forbid_words, penalise_repetition
from foveate.runtime.sampling import greedy
from tests.generation_cases import GENERATION_CASES, follow

QUESTION = "What colour is the circle on the left?"
NEW_TOKENS = 6
VOCAB = 12

tokens = st.integers(0, VOCAB - 1)
token_lists = st.lists(tokens, max_size=8)
logits_arrays = st.lists(st.floats(-30, 30, width=32), min_size=VOCAB, max_size=VOCAB).map(lambda x: np.array(x, np.float32))
generation_settings = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.05, 1.3, 7.0]),
        "no_repeat_ngram_size": st.integers(0, 4),
        "bad_words_ids": st.lists(st.lists(tokens, min_size=1, max_size=3), max_size=4),
        "min_new_tokens": st.integers(0, 6),
        "suppress_tokens": token_lists,
        "begin_suppress_tokens": token_lists,
    }
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected_logits(settings: dict[str, Any], prompt: list[int], answer: list[int], eos: list[int], logits: np.ndarray) -> Any:
    """What transformers draws from."""
    config = GenerationConfig(**{key: value or None for key, value in settings.items()})
    config._eos_token_tensor = torch.tensor(eos)
    mixin = GenerationMixin()
    mixin.config = type("Config", (), {"is_encoder_decoder": False})  # type: ignore[attr-defined]
    processors = mixin._get_logits_processor(config, len(prompt), device="cpu")
    return processors(torch.tensor([prompt + answer]), torch.from_numpy(logits[None].copy()))[0].numpy()


@settings(max_examples=300)
@given(
    generation_settings,
    st.lists(tokens, min_size=1, max_size=12),
    token_lists,
    st.lists(tokens, min_size=1, max_size=2),
    logits_arrays,
)
def test_logits_are_those_of_transformers_bit_for_bit(
    settings: dict[str, Any], prompt: list[int], answer: list[int], eos: list[int], logits: np.ndarray
) -> None:
    expected = expected_logits(settings, prompt, answer, eos, logits)
    before = logits.copy()
    sampling = Sampling(**settings).over(GenerationEntry())
    processor = LogitsProcessor(np.array(prompt, np.int64), eos, **sampling.changes())
    if np.isneginf(expected).all():
        with pytest.raises(RequestError, match="every token is forbidden"):
            processor(answer, logits)
        return
    np.testing.assert_array_equal(processor(answer, logits), expected)
    np.testing.assert_array_equal(logits, before)
    assert processor.changes or (expected == logits).all()


@given(
    st.lists(st.integers(0, VOCAB + 5), min_size=1, max_size=30),
    st.sampled_from([0.7, 1.1, 2.0]),
    st.integers(1, 5),
    logits_arrays,
)
def test_each_processor_is_that_of_transformers(ids: list[int], penalty: float, size: int, logits: np.ndarray) -> None:
    from transformers import NoBadWordsLogitsProcessor, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    words = [[ids[-1] % VOCAB, 3], [5], [*ids[-2:], 7]]
    words = [word for word in words if max(word) < VOCAB]
    for ours, theirs in (
        (lambda x: penalise_repetition(x, np.array(ids), penalty), RepetitionPenaltyLogitsProcessor(penalty)),
        (lambda x: forbid_ngrams(x, np.array(ids), size), NoRepeatNGramLogitsProcessor(size)),
        (lambda x: forbid_words(x, np.array(ids), words), NoBadWordsLogitsProcessor(words)),
    ):
        made = logits.copy()
        ours(made)
        np.testing.assert_array_equal(made, theirs(torch.tensor([ids]), torch.from_numpy(logits[None].copy()))[0].numpy())


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_generation_config_is_followed_as_by_transformers(
    case: str, pipe: Pipeline, reference: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = picture(224, 224)
    request = Request.ask(QUESTION, [image], max_new_tokens=NEW_TOKENS)
    plain = pipe.generate(request).tokens
    values = GENERATION_CASES[case](plain)
    follow(values, pipe, reference.model, monkeypatch, tmp_path)
    drawn_from: list[np.ndarray] = []
    process = LogitsProcessor.__call__
    monkeypatch.setattr(LogitsProcessor, "__call__", lambda *given: drawn_from.append(process(*given)) or drawn_from[-1])
    answer = pipe.generate(request)
    inputs = reference.inputs(request.messages, [image])
    expected = reference.model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, output_scores=True, return_dict_in_generate=True
    )
    assert answer.tokens == tuple(expected.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    for ours, theirs in zip(drawn_from, expected.scores, strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), rtol=1e-4, atol=1e-4)
    assert answer.tokens != plain or case.startswith("repetition_penalty")


@pytest.mark.parametrize("case", ["repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "begin_suppress_tokens"])
def test_a_request_may_say_it_itself(
    case: str, pipe: Pipeline, reference: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [picture(224, 224)]
    plain = pipe.generate(Request.ask(QUESTION, images, max_new_tokens=NEW_TOKENS)).tokens
    values = GENERATION_CASES[case](plain)
    asked = pipe.generate(Request.ask(QUESTION, images, max_new_tokens=NEW_TOKENS, sampling=Sampling(**values))).tokens
    follow(values, pipe, reference.model, monkeypatch, tmp_path)
    assert asked == pipe.generate(Request.ask(QUESTION, images, max_new_tokens=NEW_TOKENS)).tokens


def test_a_request_goes_before_the_checkpoint(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request.ask(QUESTION, [picture(224, 224)], max_new_tokens=NEW_TOKENS)
    plain = pipe.generate(request).tokens
    entry = GenerationEntry(repetition_penalty=9.0, suppress_tokens=(plain[0],), stop_strings=("e", "a", "i", "o", "u"))
    set_generation(pipe, entry, monkeypatch)
    assert pipe.generate(request).tokens != plain
    none = Sampling(repetition_penalty=1, suppress_tokens=())
    overridden = Request.ask(QUESTION, [picture(224, 224)], max_new_tokens=NEW_TOKENS, sampling=none, stop=())
    assert pipe.generate(overridden).tokens == plain


def test_pruned_prompts_are_penalised_like_whole_ones(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    process = LogitsProcessor.__call__
    monkeypatch.setattr(LogitsProcessor, "__call__", lambda self, *given: seen.append(self.prompt_ids) or process(self, *given))
    request = Request.ask(QUESTION, [picture(224, 224)], keep=0.25, max_new_tokens=1, sampling=Sampling(no_repeat_ngram_size=3))
    pipe.generate(request)
    np.testing.assert_array_equal(seen[0], pipe.prepare(request).layout.input_ids)


def test_stop_strings_of_the_checkpoint(
    pipe: Pipeline, reference: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = Request.ask(QUESTION, [picture(224, 224)], max_new_tokens=NEW_TOKENS)
    plain = pipe.generate(request)
    stop = pipe._tokenizer.decode([plain.tokens[2]])[-2:]
    follow({"stop_strings": stop}, pipe, reference.model, monkeypatch, tmp_path)
    answer = pipe.generate(request)
    inputs = reference.inputs(request.messages, [picture(224, 224)])
    expected = reference.model.generate(**inputs, max_new_tokens=NEW_TOKENS, tokenizer=reference.tokenizer)
    assert answer.tokens == tuple(expected[0, inputs["input_ids"].shape[1] :].tolist())
    assert answer.finish_reason == "stop"
    assert plain.text.startswith(answer.text)
    assert stop not in answer.text


def test_a_special_token_as_stop_string(pipe: Pipeline) -> None:
    end = pipe.manifest.prompt.pad_token_id
    name = pipe._tokenizer.id_to_token(end)
    others = [token for token in range(pipe.manifest.decoder.vocab_size) if token != end]
    only = Sampling(suppress_tokens=others)
    answer = pipe.generate(Request.ask(QUESTION, max_new_tokens=4, sampling=only, stop=[name]))
    assert (answer.tokens, answer.text, answer.finish_reason) == ((end,), "", "stop")
    assert pipe.generate(Request.ask(QUESTION, max_new_tokens=4, sampling=only)).tokens == (end,) * 4


def set_generation(pipe: Pipeline, entry: GenerationEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = msgspec.structs.replace(pipe.manifest.prompt, generation=entry)
    monkeypatch.setattr(pipe, "manifest", msgspec.structs.replace(pipe.manifest, prompt=prompt))


def test_the_checkpoints_sampling_is_asked_for(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = GenerationEntry(do_sample=True, temperature=1.5, top_k=7, top_p=0.9)
    set_generation(pipe, entry, monkeypatch)
    request = Request.ask(QUESTION, [picture(224, 224)], max_new_tokens=NEW_TOKENS)

    def drawn(sampling: Sampling) -> tuple[int, ...]:
        return pipe.generate(Request.ask(QUESTION, [picture(224, 224)], max_new_tokens=NEW_TOKENS, sampling=sampling)).tokens

    by_hand = [drawn(Sampling(temperature=1.5, top_k=7, top_p=0.9, seed=seed)) for seed in range(4)]
    assert [drawn(Sampling(of_checkpoint=True, seed=seed)) for seed in range(4)] == by_hand
    assert drawn(Sampling()) == pipe.generate(request).tokens
    assert len({*by_hand, drawn(Sampling())}) > 1


def test_what_of_checkpoint_means() -> None:
    silent = Sampling(of_checkpoint=True).over(GenerationEntry())  # transformers' defaults
    assert (silent.temperature, silent.top_k, silent.top_p) == (1.0, 50, 1.0)
    assert Sampling(of_checkpoint=True).over(GenerationEntry(top_k=0)).top_k is None
    assert Sampling(of_checkpoint=True).over(GenerationEntry(temperature=0)).temperature == 0
    with pytest.raises(RequestError, match=r"the checkpoint samples with min_p, which the runtime does not know\. Give"):
        Sampling(of_checkpoint=True).over(GenerationEntry(unsupported_sampling=("min_p",)))
    with pytest.raises(RequestError, match="are given beside of_checkpoint"):
        Sampling(of_checkpoint=True, top_k=3)


@settings(max_examples=100)
@given(logits_arrays, token_lists, st.integers(1, VOCAB), st.floats(0.1, 1))
def test_forbidden_tokens_are_never_drawn(logits: np.ndarray, forbidden: list[int], top_k: int, top_p: float) -> None:
    logits[forbidden] = -np.inf
    if np.isneginf(logits).all():
        return
    drawn, probabilities = Sampling(temperature=1.0, top_k=top_k, top_p=top_p).support(logits)
    assert not set(drawn.tolist()) & set(forbidden)
    assert probabilities.sum() == pytest.approx(1)


def test_a_token_beyond_the_table_is_refused_before_the_work(pipe: Pipeline) -> None:
    vocab = pipe.manifest.decoder.vocab_size
    for name, value in (("suppress_tokens", [vocab]), ("begin_suppress_tokens", [1, vocab]), ("bad_words_ids", [[1, vocab]])):
        with pytest.raises(
            RequestError, match=rf"the sampling names token {vocab}, the model has 0 to {vocab - 1}\. Take it out"
        ):
            pipe.generate(Request.ask(QUESTION, sampling=Sampling(**{name: value})))


def test_nan_logits_stay_an_error() -> None:
    processor = LogitsProcessor(np.array([1]), (), repetition_penalty=1.5)
    with pytest.raises(BackendError, match="NaN"):
        greedy(processor([], np.array([1, np.nan, 2], np.float32)))


def test_from_a_checkpoint_to_the_answer(checkpoint: Path, pipe: Pipeline, tmp_path: Path) -> None:
    from foveate.exporter import ExportOptions, export

    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    file = folder / "generation_config.json"
    request = Request.ask(QUESTION, [picture(224, 224)])
    plain = pipe.generate(request).tokens
    file.write_text(json.dumps({**json.loads(file.read_text()), "suppress_tokens": [plain[0]], "max_new_tokens": 5}))
    bundle = export(folder, tmp_path / "x.bundle", ExportOptions(check=False)).bundle
    changed = load(bundle, options=SessionOptions(threads=1))
    assert changed.manifest.prompt.generation == GenerationEntry(suppress_tokens=(plain[0],))
    answer = changed.generate(request)
    assert len(answer.tokens) == 5
    assert answer.tokens[0] != plain[0]

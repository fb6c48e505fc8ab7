"""The real graphs against transformers, from pixels to tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.engines import BackendError, BundleError, OptionError, RequestError, SessionOptions, open_sessions
from foveate.runtime import Answer, Budget, Pipeline, Relevance, Request, Sampling, load

QUESTION = "What colour is the circle on the left?"
NEW_TOKENS = 6


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chat(images: int, question: str = QUESTION) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}]


def ask(images: list[np.ndarray], question: str = QUESTION, **options: Any) -> Request:
    return Request.ask(question, images, **{"max_new_tokens": NEW_TOKENS, **options})


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (61, 500), (30, 30)])
def test_one_image_of_any_size_gives_the_tokens_of_transformers(pipe: Pipeline, reference: Any, size: tuple[int, int]) -> None:
    image = picture(*size)
    answer = pipe.generate(ask([image], keep=1.0))
    assert answer.tokens == reference.generate(chat(1), [image], NEW_TOKENS)


def test_several_images_between_texts_give_the_tokens_of_transformers(pipe: Pipeline, reference: Any) -> None:
    images = [picture(230, 260, 1), picture(240, 200, 2)]
    content = [{"type": "text", "text": "left"}, {"type": "image"}, {"type": "text", "text": "right"}, {"type": "image"}]
    messages = [
        {"role": "system", "content": "user"},
        {"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "How many objects are there?"},
    ]
    answer = pipe.generate(Request(messages, images, max_new_tokens=NEW_TOKENS))
    assert answer.tokens == reference.generate(messages, images, NEW_TOKENS)
    assert answer.grids == ((1, 8, 9), (1, 9, 8))


def test_text_only_gives_the_tokens_of_transformers(pipe: Pipeline, reference: Any) -> None:
    answer = pipe.generate(ask([], keep=0.5))
    assert answer.tokens == reference.generate(chat(0), [], NEW_TOKENS)
    assert (answer.selection.num_visual_tokens, answer.selection.reason) == (0, "the request has no image")


@pytest.mark.parametrize("budget", [Budget(ratio=0.5), Budget(mass=0.25), Budget(tokens=1)])
def test_a_pruned_prompt_gives_the_tokens_of_transformers_over_the_kept_rows(
    pipe: Pipeline, reference: Any, budget: Budget
) -> None:
    images = [picture(250, 230, 3), picture(224, 224, 4)]
    answer = pipe.generate(Request(chat(2), images, budget=budget, max_new_tokens=NEW_TOKENS))
    kept = answer.selection.keep_indices
    assert 1 <= len(kept) <= answer.selection.num_visual_tokens // 2
    assert answer.tokens == reference.generate_pruned(chat(2), images, kept, NEW_TOKENS)


def test_a_mixed_batch_gives_what_each_request_gives_alone(pipe: Pipeline) -> None:
    requests = [
        ask([picture(224, 224, 5)], keep=0.5),
        ask([], "Is the red circle above the blue square?", max_new_tokens=3),
        ask([picture(260, 300, 6), picture(230, 230, 7)], keep_tokens=7),
        ask([picture(300, 240, 8)], mass=0.3, sampling=Sampling(temperature=1.0, top_p=0.9, seed=3)),
        ask([picture(300, 240, 9)]),
    ]
    answers = pipe.generate_batch(requests)
    alone = [pipe.generate(request) for request in requests]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in alone]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert [len(answer.timings.decode_ms) for answer in answers] == [len(answer.tokens) - 1 for answer in answers]
    for answer, single in zip(answers, alone, strict=True):
        np.testing.assert_array_equal(answer.selection.keep_indices, single.selection.keep_indices)


def test_pruning_shrinks_the_prompt_and_the_cache(pipe: Pipeline) -> None:
    full = pipe.generate(ask([picture(300, 300)], keep=1.0))
    half = pipe.generate(ask([picture(300, 300)], keep=0.5))
    assert full.prompt_tokens - half.prompt_tokens == full.selection.num_visual_tokens // 2
    assert half.kv_bytes < full.kv_bytes
    entry = pipe.manifest.decoder
    row = 2 * entry.num_hidden_layers * entry.num_key_value_heads * entry.head_dim * 4
    assert half.kv_bytes % row == 0
    assert 0 <= half.kv_bytes // row - (half.prompt_tokens + NEW_TOKENS) < 16


def test_streamed_chunks_make_the_answer(pipe: Pipeline) -> None:
    request = ask([picture(224, 224)], keep=0.5)
    stream = pipe.stream(request)
    chunks = list(stream)
    (answer,) = stream.answers()
    assert "".join(chunk.text for chunk in chunks) == answer.text == pipe.generate(request).text
    assert tuple(chunk.token_id for chunk in chunks) == answer.tokens
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [answer.finish_reason]


def test_every_policy_runs_on_the_same_graphs(pipe: Pipeline, reference: Any) -> None:
    def last(relevance: Relevance, count: int) -> np.ndarray:
        return np.arange(len(relevance.scores) - count, len(relevance.visual_embeds))

    image = picture(224, 224)
    answer = pipe.generate(ask([image], keep_tokens=10, select=last))
    assert answer.selection.selector == "last"
    assert answer.tokens == reference.generate_pruned(chat(1), [image], np.arange(54, 64), NEW_TOKENS)


def test_an_image_without_a_question_is_scored_by_what_follows_it(pipe: Pipeline) -> None:
    answer = pipe.generate(ask([picture(224, 224)], "", keep=0.5))
    assert len(answer.selection.keep_indices) == 32
    assert "no user text" in answer.selection.reason


def test_an_answer_is_ready_for_json(pipe: Pipeline) -> None:
    answer = pipe.generate(ask([picture(224, 224)], keep=0.5))
    read = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert read["selection"]["num_visual_tokens"] == len(read["selection"]["scores"]) == 64
    assert read["timings"]["ttft_ms"] > read["timings"]["prefill_ms"] > 0
    assert_timed(answer)


def assert_timed(answer: Answer) -> None:
    timings = answer.timings
    stages = [
        timings.preprocess_ms,
        timings.vision_ms,
        timings.score_ms,
        timings.select_ms,
        timings.embed_ms,
        timings.prefill_ms,
    ]
    assert all(stage > 0 for stage in stages)
    assert timings.ttft_ms == pytest.approx(sum(stages))


def test_a_request_above_the_capacity_is_refused(bundle: Path) -> None:
    pipe = load(bundle, options=SessionOptions(threads=1), kv_capacity_tokens=60, verify=False)
    assert pipe.generate(ask([picture(224, 224)], keep_tokens=10)).tokens
    with pytest.raises(RequestError, match=r"the limit is 60\. Keep fewer visual tokens"):
        pipe.generate(ask([picture(224, 224)]))
    with pytest.raises(OptionError, match="kv_capacity_tokens is 0"):
        load(bundle, kv_capacity_tokens=0, verify=False)


def test_a_broken_tokenizer_is_a_bundle_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.runtime.pipeline.TOKENIZER", "manifest.json")
    with pytest.raises(BundleError):
        load(bundle, verify=False)


def test_a_with_block_closes_the_graphs(bundle: Path) -> None:
    request = ask([picture(224, 224)], keep=0.5)
    with pytest.raises(RequestError, match="needs a trained scorer"), load(bundle, verify=False) as pipe:
        pipe.generate(replace(request, select="learned"))  # which the bundle has not
    with pytest.raises(BackendError, match="is closed"):
        pipe.generate(request)
    pipe.close()


def test_nothing_stays_open_where_loading_fails(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}

    def remember(*arguments: Any) -> dict[str, Any]:
        opened.update(open_sessions(*arguments))
        return opened

    monkeypatch.setattr("foveate.runtime.pipeline.open_sessions", remember)
    with pytest.raises(OptionError, match="kv_capacity_tokens is 0"):
        load(bundle, kv_capacity_tokens=0, verify=False)
    assert set(opened) == {"vision", "score", "embed", "decoder"}
    assert all(session._inner is None for session in opened.values())


def test_an_option_that_nothing_uses_is_refused_before_the_bundle_is_read() -> None:
    with pytest.raises(OptionError, match="backend 'openvino' has no option 'device'"):
        load("no.bundle", options=SessionOptions(device=1), vision_backend="openvino")

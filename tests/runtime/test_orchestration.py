"""What happens around the graphs, with graphs that only remember what they were fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from foveate.engines import (
    DecoderEntry,
    GraphSpec,
    Manifest,
    PromptEntry,
    RequestError,
    ScorerEntry,
    SourceEntry,
    TensorSpec,
)
from foveate.runtime import Budget, Pipeline, Request
from tests.fake_session import FakeSession

HIDDEN, VOCAB, LAYERS = 4, 512, 2
PAST = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
IMAGE = np.zeros((112, 140, 3), np.uint8)  # 4 x 5 visual tokens


def spec(name: str, outputs: Sequence[TensorSpec] = (), /, **inputs: tuple[str, Sequence[int | str]]) -> GraphSpec:
    tensors = [TensorSpec(key, dtype, tuple(shape)) for key, (dtype, shape) in inputs.items()]
    return GraphSpec(name, f"graphs/{name}.onnx", tuple(tensors), tuple(outputs))


VISION = spec("vision", pixel_values=("float32", ["frames", "patches", 1176]), patch_positions=("int64", ["patches", 2]))
SCORE = spec(
    "score",
    inputs_embeds=("float32", ["total_tokens", HIDDEN]),
    position_ids=("int64", [3, "total_tokens"]),
    visual_indices=("int64", ["visual_tokens"]),
    instruction_indices=("int64", ["instruction_tokens"]),
)
EMBED = spec(
    "embed",
    [TensorSpec("inputs_embeds", "float32", ("batch", "sequence", HIDDEN))],
    input_ids=("int64", ["batch", "sequence"]),
    visual_embeds=("float32", ["visual_tokens", HIDDEN]),
    keep_indices=("int64", ["kept_tokens"]),
    placeholder_indices=("int64", ["kept_tokens"]),
)
CACHE = ("float32", ("batch", 2, "kv_capacity", 8))
DECODER = spec(
    "decoder",
    [TensorSpec("logits", "float32", ("batch", VOCAB)), *[TensorSpec(f"present.{name}", *CACHE) for name in PAST]],
    inputs_embeds=("float32", ["batch", "sequence", HIDDEN]),
    position_ids=("int64", [3, "batch", "sequence"]),
    last_indices=("int64", ["batch"]),
    seqlens_k=("int32", ["batch"]),
    total_sequence_length=("int32", []),
    **{f"past_key_values.{name}": CACHE for name in PAST},
)


class FakeGraphs:
    """The four graphs. The decoder draws `script[step][row]`; visual token n scores n % 7."""

    def __init__(self, script: Sequence[Sequence[int]]) -> None:
        self.steps = iter(script)
        self.sessions = {
            "vision": FakeSession(VISION, self.vision),
            "score": FakeSession(SCORE, self.score),
            "embed": FakeSession(EMBED, self.embed),
            "decoder": FakeSession(DECODER, self.decoder),
        }

    def vision(self, feeds: Any) -> dict[str, np.ndarray]:
        return {"visual_embeds": np.full((feeds["pixel_values"].shape[1] // 4, HIDDEN), 1, np.float32)}

    def score(self, feeds: Any) -> dict[str, np.ndarray]:
        scores = np.arange(len(feeds["visual_indices"])) % 7 / np.float32(7)
        return {"scores": scores, "attention": scores}

    def embed(self, feeds: Any) -> dict[str, np.ndarray]:
        return {"inputs_embeds": np.zeros((*feeds["input_ids"].shape, HIDDEN), np.float32)}

    def decoder(self, feeds: Any) -> dict[str, np.ndarray]:
        logits = np.zeros((len(feeds["last_indices"]), VOCAB), np.float32)
        drawn = np.array(next(self.steps))
        logits[np.arange(len(logits)), drawn] = 1
        presents = {f"present.{name}": feeds[f"past_key_values.{name}"] + 1 for name in PAST}
        return {"logits": logits, "likeliest_tokens": drawn, **presents}

    def calls(self, name: str) -> list[dict[str, np.ndarray]]:
        return self.sessions[name].calls


@pytest.fixture
def manifest(prompt_entry: PromptEntry, constants: dict[str, Any]) -> Manifest:
    decoder = DecoderEntry(LAYERS, 2, 8, HIDDEN, VOCAB, 3, 100, "float32")
    source = SourceEntry("tiny", "0" * 64)
    return Manifest(3, "0", "qwen2_vl", source, {}, decoder, prompt_entry, constants, ScorerEntry(), {})


@pytest.fixture
def words(tokenizer: Tokenizer) -> dict[str, int]:
    return {word: tokenizer.encode(word).ids[0] for word in ("red", "blue", "circle")} | {
        "end": tokenizer.token_to_id("<|im_end|>")
    }


def make(manifest: Manifest, tokenizer: Tokenizer, script: Sequence[Sequence[int]]) -> tuple[Pipeline, FakeGraphs]:
    graphs = FakeGraphs(script)
    return Pipeline(manifest, tokenizer, graphs.sessions), graphs


def test_one_request_from_pixels_to_text(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    pipe, graphs = make(manifest, tokenizer, [[words["red"]], [words["circle"]], [words["end"]]])
    answer = pipe.generate(Request.ask("What?", IMAGE, keep_tokens=3))
    assert (answer.text, answer.finish_reason) == ("redcircle", "eos")
    assert answer.tokens == (words["red"], words["circle"], words["end"])
    assert answer.selection.keep_indices.tolist() == [5, 6, 13]  # 6/7 twice, then the first 5/7
    (score,) = graphs.calls("score")
    (whole, embed, *_), (prefill, *steps) = graphs.calls("embed"), graphs.calls("decoder")
    assert whole["keep_indices"].tolist() == list(range(20))
    assert whole["placeholder_indices"].tolist() == score["visual_indices"].tolist()
    assert len(score["inputs_embeds"]) == whole["input_ids"].shape[1]
    assert embed["keep_indices"].tolist() == [5, 6, 13]
    placeholders = embed["placeholder_indices"]
    image_token = manifest.processor["image_token_id"]
    assert np.flatnonzero(embed["input_ids"][0] == image_token).tolist() == placeholders.tolist()
    kept_positions = score["position_ids"][:, score["visual_indices"][[5, 6, 13]]]
    np.testing.assert_array_equal(prefill["position_ids"][:, 0, placeholders], kept_positions)
    length = embed["input_ids"].shape[1]
    assert whole["input_ids"].shape[1] - length == 17
    assert [int(call["total_sequence_length"]) for call in (prefill, *steps)] == [length, length + 1, length + 2]
    following = score["position_ids"].max() + 1
    assert [call["position_ids"][:, 0, 0].tolist() for call in steps] == [[following] * 3, [following + 1] * 3]
    assert tokenizer.decode(whole["input_ids"][0, score["instruction_indices"]].tolist()) == "What?"


def test_the_scorer_is_bypassed_where_everything_stays(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    for budget in (Budget(), Budget(ratio=1.0), Budget(tokens=20)):
        pipe, graphs = make(manifest, tokenizer, [[words["end"]]])
        answer = pipe.generate(Request(Request.ask("What?", IMAGE).messages, [IMAGE], budget))
        assert not graphs.calls("score")
        assert answer.selection.keep_indices.tolist() == list(range(20))
        assert answer.selection.reason


def test_text_only_runs_neither_vision_nor_score(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    pipe, graphs = make(manifest, tokenizer, [[words["red"]], [words["end"]]])
    answer = pipe.generate(Request.ask("What?", keep=0.5))
    assert not graphs.calls("vision")
    assert not graphs.calls("score")
    assert graphs.calls("embed")[0]["visual_embeds"].shape == (0, HIDDEN)
    assert answer.selection.to_dict()["reason"] == "the request has no image"


def test_vision_runs_once_per_image(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    pipe, graphs = make(manifest, tokenizer, [[words["end"]]])
    answer = pipe.generate(Request.ask("What?", [IMAGE, IMAGE[:84]], keep=0.5))
    assert [call["pixel_values"].shape[:2] for call in graphs.calls("vision")] == [(1, 80), (1, 60)]
    assert answer.grids == ((1, 4, 5), (1, 3, 5))
    assert graphs.calls("embed")[0]["visual_embeds"].shape == (35, HIDDEN)


def test_rows_of_a_batch_end_at_different_times(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    red, blue, end = words["red"], words["blue"], words["end"]
    # A prompt each, then steps of three rows and of two; the last row takes the place of one that ended.
    script = [[red], [blue], [red], [end, red, red], [red, red], [end]]
    pipe, graphs = make(manifest, tokenizer, script)
    requests = [
        Request.ask("What?", IMAGE, keep_tokens=2),
        Request.ask("How many circles are there?"),
        Request.ask("Where?", IMAGE, keep=0.5, max_new_tokens=3),
    ]
    answers = pipe.generate_batch(requests)
    assert [answer.tokens for answer in answers] == [(red, end), (blue, red, red, end), (red, red, red)]
    assert [answer.finish_reason for answer in answers] == ["eos", "eos", "length"]
    assert [len(answer.timings.decode_ms) for answer in answers] == [1, 3, 2]
    calls = graphs.calls("decoder")
    prompts, steps = calls[:3], calls[3:]
    lengths = [answer.prompt_tokens for answer in answers]
    assert [call["inputs_embeds"].shape[:2] for call in prompts] == [(1, length) for length in lengths]
    assert [call["seqlens_k"].tolist() for call in prompts] == [[length - 1] for length in lengths]
    first, second, third = lengths
    assert [call["seqlens_k"].tolist() for call in steps] == [[first, second, third], [third + 1, second + 1], [second + 2]]
    capacity = prompts[0]["past_key_values.0.key"].shape[2]
    assert all((call["seqlens_k"] < capacity).all() for call in steps)
    assert answers[0].kv_bytes == capacity * 2 * LAYERS * 2 * 8 * 4


def test_what_a_run_writes_into_the_cache_the_next_one_reads(
    manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]
) -> None:
    pipe, graphs = make(manifest, tokenizer, [[words["red"]], [words["end"]]])
    pipe.generate(Request.ask("What?", IMAGE, keep_tokens=2))
    first, second = graphs.calls("decoder")
    for name in PAST:
        assert (first[f"past_key_values.{name}"] == 0).all()
        assert (second[f"past_key_values.{name}"] == 1).all()


def test_a_stop_string_ends_the_answer(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    pipe, _ = make(manifest, tokenizer, [[words["red"]], [words["circle"]], [words["blue"]]])
    answer = pipe.generate(Request.ask("What?", stop=["dcirc"]))
    assert (answer.text, answer.finish_reason, len(answer.tokens)) == ("re", "stop", 2)


def test_a_held_back_text_comes_out_at_the_end(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    pipe, _ = make(manifest, tokenizer, [[words["red"]], [words["end"]]])
    assert [(chunk.text, chunk.finish_reason) for chunk in pipe.stream(Request.ask("What?", stop=["red circle"]))] == [
        ("", None),
        ("red", "eos"),
    ]


def test_a_prompt_above_the_models_limit_is_refused(manifest: Manifest, tokenizer: Tokenizer) -> None:
    pipe, graphs = make(manifest, tokenizer, [])
    with pytest.raises(RequestError, match=r"tokens, the limit is 100\. Keep fewer visual tokens"):
        pipe.generate(Request.ask("What?" * 35, IMAGE))
    assert graphs.calls("vision")
    assert not graphs.calls("embed")


def test_a_text_above_the_models_limit_is_refused_before_the_work(manifest: Manifest, tokenizer: Tokenizer) -> None:
    pipe, graphs = make(manifest, tokenizer, [])
    with pytest.raises(RequestError, match="the limit is 100"):
        pipe.generate(Request.ask("What?" * 60, IMAGE, keep=0.5))
    assert not graphs.calls("vision")


def test_no_requests_are_no_answers(manifest: Manifest, tokenizer: Tokenizer) -> None:
    assert make(manifest, tokenizer, [])[0].generate_batch([]) == []


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"stop": ""}, {"stop": "END"}, {"stop": [""]}]
)
def test_unusable_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Request.ask("What?", **options)


def test_closing_frees_every_graph(manifest: Manifest, tokenizer: Tokenizer, words: dict[str, int]) -> None:
    pipe, graphs = make(manifest, tokenizer, [[words["end"]]])
    pipe.generate(Request.ask("What?"))
    pipe.close()
    assert all(session.closed for session in graphs.sessions.values())

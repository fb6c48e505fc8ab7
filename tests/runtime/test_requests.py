"""What a request takes, what a stream keeps, and what threads may do with both."""

from __future__ import annotations

import gc
import io
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.engines import BackendError, MachineError, RequestError, SessionOptions
from foveate.runtime import Budget, Pipeline, Request, Sampling, load
from foveate.runtime.values import shown

QUESTION = "What colour is the circle on the left?"
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
ODD = (object(), 3.5j, {"a": 1}, np.zeros(3), b"bytes", [None], float("nan"))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_numbers_may_be_numpys() -> None:
    request = Request.ask(
        "What?",
        keep_tokens=np.int32(5),
        max_new_tokens=np.uint8(4),
        fps=np.float32(2),
        max_frames=np.int64(3),
        min_retained=np.float64(0.5),
        explain=np.True_,
        ignore_eos=np.False_,
    )
    values = (request.budget.tokens, request.max_new_tokens, request.fps, request.max_frames, request.min_retained)
    assert values == (5, 4, 2.0, 3, 0.5)
    assert [type(value) for value in values] == [int, int, float, int, float]
    assert (request.explain, request.ignore_eos) == (True, False)
    sampling = Sampling(np.float32(0.5), np.int64(3), np.float16(0.5), np.uint32(7), suppress_tokens=np.array([1, 2]))
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.5, 7)
    assert sampling.suppress_tokens == (1, 2)
    assert hash(Sampling(bad_words_ids=[[1], (2, 3)])) == hash(Sampling(bad_words_ids=(np.array([1]), [2, 3])))


def test_none_is_the_default() -> None:
    names = ("images", "videos", "budget", "sampling", "select", "min_retained", "explain", "max_new_tokens")
    names += ("stop", "fps", "max_frames", "ignore_eos")
    assert Request(MESSAGES, **dict.fromkeys(names)) == Request(MESSAGES)
    assert Request.ask(QUESTION, None, videos=None) == Request.ask(QUESTION)
    assert Request.ask(None, "a.png") == Request.ask("", ["a.png"])


def test_collections_of_any_kind() -> None:
    paths = ["a.png", "b.png"]
    listed = Request.ask(QUESTION, paths, stop=["x"])
    assert Request.ask(QUESTION, (path for path in paths), stop=iter(["x"])) == listed
    assert Request.ask(QUESTION, dict.fromkeys(paths).keys(), stop=("x",)) == listed
    assert Request(iter(MESSAGES)).messages == tuple(MESSAGES)
    assert Request(MESSAGES, images=iter(paths)).images == ("a.png", "b.png")


@pytest.mark.parametrize(
    "single",
    ["a.png", b"png", bytearray(b"png"), memoryview(b"png"), io.BytesIO(b"png"), picture(2, 2), Image.new("L", (1, 1))],
)
def test_one_image_is_a_list_of_one(single: Any) -> None:
    for request in (Request.ask(QUESTION, single), Request(MESSAGES, single)):
        assert len(request.images) == 1
        assert request.images[0] is single
    assert len(Request.ask(QUESTION, videos=single).videos) == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("messages", (None, "text", b"x", 3, {"role": "user", "content": "x"}, np.array(3))),
        ("images", (3, 0.5, {"a": 1}, np.float64(3), True)),
        ("videos", (3, 0.5, {"a": 1}, True)),
        ("budget", (0.5, "half", {}, Sampling())),
        ("sampling", (0.7, "greedy", {}, Budget())),
        ("select", (3, 0.5, ["foveated"], b"foveated")),
        ("min_retained", (0, 2, "0.9", True, np.nan, 10**400, np.array(0.5))),
        ("explain", ("no", 1, 0, "")),
        ("max_new_tokens", (0, -1, 1.0, "3", True, np.array([3]), np.float64(3))),
        ("stop", ("END", b"END", [b"END"], [""], [None], 3, {"a": 1}, [["x"]])),
        ("fps", (0, -1, np.inf, np.nan, "1", True)),
        ("max_frames", (0, 1.0, "3", True)),
        ("ignore_eos", ("yes", 1)),
    ],
)
def test_odd_values_are_one_clear_error(field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(RequestError) as caught:
            Request(**{"messages": MESSAGES, field: value})
        assert str(caught.value).startswith((field, f"stop holds {value[0]!r}" if isinstance(value, list) else field))
        assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", ("0", None, True, 10**400)),
        ("of_checkpoint", (1, "yes", None)),
        ("repetition_penalty", (0, -1, np.inf, "1.1", True)),
        ("no_repeat_ngram_size", (-1, 1.5, "2", True)),
        ("min_new_tokens", (-1, 1.5, "2")),
        ("suppress_tokens", (3, "3", b"3", [-1], [1.5], [None], ["3"])),
        ("begin_suppress_tokens", ({3: 4}, [True])),
        ("bad_words_ids", ([3], [[]], "x", [["x"]], [[-1]], 3)),
    ],
)
def test_odd_settings_of_the_sampling(field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=field):
            Sampling(**{field: value})


@given(st.sampled_from([*Request.__dataclass_fields__]), st.sampled_from(range(len(ODD))))
def test_whatever_is_given_is_taken_or_a_request_error(field: str, odd: int) -> None:
    with suppress(RequestError):
        Request(**{"messages": MESSAGES, field: ODD[odd]})


@pytest.mark.parametrize("question", [b"What?", 3, ["What?"]])
def test_a_question_is_text(question: Any) -> None:
    with pytest.raises(RequestError, match=r"the question is .*, expected text"):
        Request.ask(question)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(RequestError) as caught:
        Request.ask("What?", max_new_tokens="9" * 10**6)
    assert len(str(caught.value)) < 300
    assert shown("a\nb") == "'a\\nb'"


@pytest.mark.parametrize(("options", "explained"), [({}, False), ({"keep": 0.25}, True), ({"explain": True}, True)])
def test_an_idle_stream_keeps_no_more_than_it_needs(bundle: Any, options: dict[str, Any], explained: bool) -> None:
    """Of Python's memory, in which Pillow's pictures do not lie."""
    pipe = load(bundle, options=SessionOptions(threads=1), vision_cache_bytes=0)
    pipe.generate(Request.ask(QUESTION, picture(224, 224), max_new_tokens=2))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        stream = pipe.stream(Request.ask(QUESTION, picture(1000, 1000), max_new_tokens=2, **options))
        next(stream)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
        (answer,) = stream.answers()
    finally:
        tracemalloc.stop()
    assert kept <= answer.kv_bytes + 4 * pipe.manifest.decoder.vocab_size + 64_000
    assert len(answer.pictures) == explained


def test_two_threads_on_one_stream_are_an_error(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = pipe.stream(Request.ask(QUESTION, picture(224, 224), max_new_tokens=4))
    entered, leave = threading.Event(), threading.Event()
    inner = stream._chunks

    def slow() -> Iterator[Any]:
        entered.set()
        assert leave.wait(60)
        yield from inner

    stream._chunks = slow()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        assert entered.wait(60)
        for use in (lambda: next(stream), stream.answers, lambda: list(stream)):
            with pytest.raises(RequestError, match=r"another thread draws from this stream\. Read it in one thread"):
                use()
        leave.set()
        assert first.result().index == 0
    (answer,) = stream.answers()
    assert answer.tokens == pipe.generate(Request.ask(QUESTION, picture(224, 224), max_new_tokens=4)).tokens


def test_a_stream_that_failed_gives_no_answer(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = pipe.stream(Request.ask(QUESTION, picture(224, 224), max_new_tokens=4))
    next(stream)

    def fail(*arguments: Any) -> Any:
        raise BackendError("the graph failed")

    monkeypatch.setattr(pipe.text_model, "step", fail)
    for _ in range(2):
        with pytest.raises(BackendError, match="the graph failed"):
            next(stream)
        with pytest.raises(BackendError, match="the graph failed"):
            stream.answers()


def test_threads_share_a_pipeline(pipe: Pipeline) -> None:
    kinds = ((1.0, Sampling()), (0.5, Sampling(temperature=1.0, seed=3)), (0.25, Sampling(repetition_penalty=1.3)))
    requests = [
        Request.ask(QUESTION, picture(224 + 28 * (number % 3), 224, number), keep=keep, max_new_tokens=6, sampling=sampling)
        for number in range(8)
        for keep, sampling in kinds
    ]
    expected = [pipe.generate(request).tokens for request in requests]
    pipe.vision_cache.clear()
    with ThreadPoolExecutor(8) as pool:
        assert [answer.tokens for answer in pool.map(pipe.generate, requests)] == expected
        streams = list(pool.map(pipe.stream, requests))
        assert [answers[0].tokens for answers in pool.map(lambda stream: stream.answers(), streams)] == expected


@pytest.mark.parametrize("cache_bytes", [0, 10**8])
def test_visual_embeds_are_read_only(bundle: Any, cache_bytes: int) -> None:
    pipe = load(bundle, options=SessionOptions(threads=1), vision_cache_bytes=cache_bytes)
    request = Request.ask(QUESTION, picture(224, 224), keep=0.5, max_new_tokens=4)
    first = pipe.generate(request).tokens
    encoded = pipe.encode(request)
    with pytest.raises(ValueError, match="read-only"):
        encoded.visual_embeds[:] = 0  # type: ignore[index]
    with pytest.raises(ValueError, match="WRITEABLE"):
        encoded.visual_embeds.flags.writeable = True  # type: ignore[attr-defined]
    assert pipe.generate(request).tokens == pipe.generate(request, encoded).tokens == first


@pytest.mark.parametrize("stage", ["_prepare", "vision", "score", "step"])
def test_memory_that_runs_out_is_one_line(stage: str, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy_for_memory(*arguments: Any) -> Any:
        return np.empty(2**60, np.uint8)

    monkeypatch.setattr(pipe.text_model if stage == "step" else pipe, stage, greedy_for_memory)
    request = Request.ask(QUESTION, picture(224, 224), keep=0.5, max_new_tokens=4)
    message = r"there is not enough memory: Unable to allocate 1\.00 EiB .*\. Use fewer or smaller images"
    calls = [lambda: pipe.generate(request), lambda: pipe.stream(request).answers(), lambda: pipe.generate_batch([request])]
    calls += [lambda: pipe.encode(request)] if stage in ("_prepare", "vision") else []
    for call in calls:
        pipe.vision_cache.clear()
        with pytest.raises(MachineError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

"""Visual tokens of images that were seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.runtime import Pipeline, Request, load
from foveate.runtime.vision_cache import VisionCache, content_hash


def feeds(number: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.full(3, number, np.float32)}


def tokens(number: int) -> np.ndarray:
    """Of 4 to 32 bytes, as `number` has it."""
    return np.full(1 + number % 8, number, np.float32)


@given(st.integers(0, 96), st.lists(st.integers(0, 12), max_size=60))
def test_it_is_an_lru_bounded_in_bytes(max_bytes: int, numbers: list[int]) -> None:
    cache = VisionCache(max_bytes)
    model: OrderedDict[int, int] = OrderedDict()
    hits = 0
    for number in numbers:
        calls: list[int] = []

        def compute(number: int = number, calls: list[int] = calls) -> np.ndarray:
            calls.append(number)
            return tokens(number)

        np.testing.assert_array_equal(cache.get(feeds(number), compute), tokens(number))
        assert bool(calls) != (number in model)
        hits += number in model
        if number in model:
            model.move_to_end(number)
        elif tokens(number).nbytes <= max_bytes:
            model[number] = tokens(number).nbytes
            while sum(model.values()) > max_bytes:
                model.popitem(last=False)
    stats = cache.stats
    assert (stats.entries, stats.nbytes, stats.hits) == (len(model), sum(model.values()), hits)
    assert stats.nbytes <= max_bytes


@pytest.mark.parametrize(
    "other",
    [
        {"pixel_values": np.zeros((2, 3), np.float32)},
        {"pixel_values": np.zeros(6, np.float64)},
        {"pixel_values": np.array([0, 0, 0, 0, 0, 1e-30], np.float32)},
        {"pixels": np.zeros(6, np.float32)},
        {"pixel_values": np.zeros(6, np.float32), "positions": np.zeros(0)},
    ],
)
def test_the_hash_sees_every_difference(other: dict[str, np.ndarray]) -> None:
    first = {"pixel_values": np.zeros(6, np.float32)}
    assert content_hash(first) == content_hash({"pixel_values": np.zeros(12, np.float32)[::2]})
    assert content_hash(first) != content_hash(other)


def test_a_failed_run_is_not_kept() -> None:
    cache = VisionCache(1000)

    def fail() -> np.ndarray:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get(feeds(1), fail)
    np.testing.assert_array_equal(cache.get(feeds(1), lambda: tokens(1)), tokens(1))


class Counting:
    """A session that counts its runs."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.runs = inner, 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> Any:
        self.runs += 1
        return self.inner.run(feeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def count_vision(pipe: Pipeline) -> Counting:
    counting = Counting(pipe._sessions["vision"])
    pipe._sessions = {**pipe._sessions, "vision": counting}
    return counting


def test_a_second_question_about_an_image_does_not_run_vision(reference_bundle: Any) -> None:
    random = np.random.default_rng(0)
    one, other = (random.integers(0, 256, (230, 260, 3), dtype=np.uint8) for _ in range(2))
    pipe, plain = load(reference_bundle), load(reference_bundle, vision_cache_bytes=0)
    vision, always = count_vision(pipe), count_vision(plain)
    for question, images in (
        ("What?", [one]),
        ("Where is the star?", [other, one]),
        ("What?", [one, other]),
        ("Who?", [other]),
    ):
        for keep in (1.0, 0.3):
            request = Request.ask(question, images, keep=keep, max_new_tokens=4)
            assert pipe.generate(request).tokens == plain.generate(request).tokens
    assert (vision.runs, always.runs) == (2, 12)
    assert (pipe.vision_cache.stats.hits, pipe.vision_cache.stats.misses) == (10, 2)
    pipe.close()
    assert pipe.vision_cache.stats.nbytes == 0

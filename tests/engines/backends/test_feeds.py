"""Feeds and buffers are checked against the spec before any backend sees them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import BackendError, GraphSpec, TensorSpec, check_buffers, check_feeds

SPEC = GraphSpec(
    name="g",
    file="graphs/g.onnx",
    inputs=(
        TensorSpec("embeds", "float32", ("batch", "sequence", 4)),
        TensorSpec("ids", "int64", ("batch", "sequence")),
        TensorSpec("total", "int32", ()),
    ),
    outputs=(TensorSpec("logits", "float32", ("batch", 8)), TensorSpec("cache", "float32", ("batch", "capacity"))),
)


def make_feeds(batch: int = 2, sequence: int = 3) -> dict[str, np.ndarray]:
    return {
        "embeds": np.zeros((batch, sequence, 4), np.float32),
        "ids": np.zeros((batch, sequence), np.int64),
        "total": np.array(3, np.int32),
    }


@given(st.integers(0, 5), st.integers(0, 5))
def test_feeds_that_fit(batch: int, sequence: int) -> None:
    assert check_feeds(make_feeds(batch, sequence), SPEC) == {"batch": batch, "sequence": sequence}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("extra", np.zeros(1), "graph 'g' has no input 'extra'. Choose from embeds, ids, total."),
        ("ids", None, "graph 'g' was run without its input 'ids'. Feed a int64 array."),
        ("ids", np.zeros((2, 3), np.int32), "input 'ids' of graph 'g': got int32, expected int64. Cast it before the run."),
        ("ids", np.zeros(2, np.int64), "got shape [2], expected ['batch', 'sequence']. Reshape it before the run."),
        ("total", np.zeros(1, np.int32), "got shape [1], expected []. Reshape it"),
        ("embeds", np.zeros((2, 3, 5), np.float32), "got shape [2, 3, 5], expected [2, 3, 4] for ['batch', 'sequence', 4]."),
        (
            "ids",
            np.zeros((2, 4), np.int64),
            "got shape [2, 4], expected [2, 3] for ['batch', 'sequence']. Make the arrays agree.",
        ),
    ],
    ids=["unknown", "missing", "dtype", "rank", "scalar", "size", "symbol"],
)
def test_feeds_that_do_not_fit(name: str, value: np.ndarray | None, message: str) -> None:
    feeds = make_feeds()
    feeds.pop(name, None)
    if value is not None:
        feeds[name] = value
    with pytest.raises(BackendError) as caught:
        check_feeds(feeds, SPEC)
    assert message in str(caught.value)


def test_a_symbol_that_one_tensor_uses_twice() -> None:
    spec = GraphSpec("g", "g.onnx", (TensorSpec("square", "bool", ("n", "n")),), ())
    assert check_feeds({"square": np.zeros((3, 3), bool)}, spec) == {"n": 3}
    with pytest.raises(BackendError, match=r"got shape \[3, 4\], expected \[3, 3\]"):
        check_feeds({"square": np.zeros((3, 4), bool)}, spec)


def test_buffers_that_fit() -> None:
    symbols = {"batch": 2}
    check_buffers({"logits": np.zeros((2, 8), np.float32), "cache": np.zeros((2, 7), np.float32)}, SPEC, symbols)
    check_buffers({}, SPEC, symbols)
    assert symbols == {"batch": 2}


def read_only() -> np.ndarray:
    array = np.zeros((2, 8), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden", np.zeros((2, 8), np.float32), "graph 'g' has no output 'hidden'. Choose from logits, cache."),
        ("logits", np.zeros((2, 8)), "buffer 'logits' of graph 'g': got float64, expected float32."),
        ("logits", np.zeros(8, np.float32), "got shape [8], expected ['batch', 8]."),
        ("logits", np.zeros((3, 8), np.float32), "got shape [3, 8], expected [2, 8] for ['batch', 8]."),
        ("logits", np.zeros((2, 16), np.float32)[:, ::2], "the array is read-only or not contiguous."),
        ("logits", read_only(), "the array is read-only or not contiguous."),
    ],
    ids=["unknown", "dtype", "rank", "symbol", "strided", "read-only"],
)
def test_buffers_that_do_not_fit(name: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(BackendError) as caught:
        check_buffers({name: value}, SPEC, {"batch": 2})
    assert message in str(caught.value)

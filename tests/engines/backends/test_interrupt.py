"""Ending runs from another thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from foveate.engines import Bundle, CancelledError, Interrupt, SessionOptions
from foveate.engines.backends.interrupt import current_interrupt
from foveate.runtime import Pipeline, Request, load


def test_it_covers_a_thread_for_a_while() -> None:
    interrupt, seen = Interrupt(), []
    assert current_interrupt() is None
    with interrupt.covers():
        assert current_interrupt() is interrupt
        other = threading.Thread(target=lambda: seen.append(current_interrupt()))
        other.start()
        other.join()
    assert current_interrupt() is None
    assert seen == [None]


def test_what_stops_is_told_once_and_late_ones_at_once() -> None:
    interrupt, told = Interrupt(), list[str]()
    with interrupt.stopping(lambda: told.append("over")):
        pass
    with interrupt.stopping(lambda: told.append("first")):
        interrupt.set()
        interrupt.set()
    with interrupt.stopping(lambda: told.append("late")):
        pass
    assert told == ["first", "first", "late"]
    with pytest.raises(CancelledError):
        interrupt.check()


@pytest.mark.parametrize("vision_backend", [None, "openvino"])
def test_a_run_ends_in_its_middle(vision_backend: str | None, tiny_bundle: Bundle) -> None:
    if vision_backend:
        pytest.importorskip(vision_backend)
    options = SessionOptions(threads=1)
    with load(tiny_bundle.path, options=options, vision_cache_bytes=0, vision_backend=vision_backend) as pipe:
        request = Request.ask("What?", [np.full((224, 224, 3), seed, np.uint8) for seed in range(40)], max_new_tokens=1)
        whole_seconds = _time(pipe, request)
        interrupt = Interrupt()
        timer = threading.Timer(whole_seconds / 4, interrupt.set)
        began = time.monotonic()
        timer.start()
        with interrupt.covers(), pytest.raises(CancelledError):
            pipe.generate(request)
        assert time.monotonic() - began < whole_seconds * 0.9 + 0.2
        assert _time(pipe, request) > 0  # and the sessions work as before
        with interrupt.covers(), pytest.raises(CancelledError):
            pipe.generate(request)


def _time(pipe: Pipeline, request: Request) -> float:
    began = time.monotonic()
    answer: Any = pipe.generate(request)
    assert answer.tokens
    return time.monotonic() - began

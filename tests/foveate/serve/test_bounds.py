"""What one client may take of the machine: its threads, its memory, the turns of others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from foveate.engines import RequestError
from foveate.runtime import Pipeline
from foveate.serve.sources import Sources
from foveate.serve.tokens import TokenTexts
from tests.foveate.serve.conftest import Running
from tests.foveate.serve.test_refusals import check


@pytest.fixture(scope="session")
def texts(pipe: Pipeline) -> TokenTexts:
    return TokenTexts(pipe._tokenizer)


def ticks_beside(work: Callable[[], object]) -> int:
    """How often another thread had its turn meanwhile."""
    thread, ticks = threading.Thread(target=work), 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    return ticks


def test_threads_go_on_while_a_text_is_read(pipe: Pipeline, texts: TokenTexts) -> None:
    text = "a word of many " * 20_000
    assert ticks_beside(lambda: texts.encode(text, True)) > 5
    assert ticks_beside(lambda: pipe._prepare._encoder._encode_piece(text, False)) > 5


def test_threads_go_on_while_tokens_are_made_text(texts: TokenTexts) -> None:
    tokens = [5, 9, 30] * 200_000
    assert ticks_beside(lambda: texts.decode(tokens)) > 5


def test_more_tokens_than_fit_are_made_no_text(server: Running) -> None:
    response = server.http.post("/detokenize", json={"tokens": [1] * 1025})
    check(response, 400, "there are 1025 tokens, the limit is 1024", param="tokens")


@pytest.mark.parametrize("head", ["data:image/png" + ";a" * 5_000_000, "data:" + "a" * 10_000_000, "http://a/" + "é" * 4_000_000])
def test_a_long_head_of_an_address_is_refused_at_sight(head: str) -> None:
    start = time.process_time()
    with pytest.raises(RequestError):
        asyncio.run(Sources(["a"]).resolve(head, "image"))
    assert time.process_time() - start < 0.3


def test_nobody_goes_before_the_others(server: Running) -> None:
    check(server.chat(foveate={"priority": -1}), 400, ">= 0", param="foveate.priority")
    assert server.chat(foveate={"priority": 3}).status_code == 200

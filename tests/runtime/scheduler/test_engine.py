"""Many requests on one pipeline: answers are those of a run alone, whatever runs beside, and each ends by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engines import (
    BackendError,
    BusyError,
    CancelledError,
    DeadlineError,
    MachineError,
    NextTokens,
    OptionError,
    RequestError,
    SessionOptions,
)
from foveate.runtime import Answer, Pipeline, Request, Sampling, load
from foveate.runtime.scheduler import Engine, EngineOptions, Ticket
from foveate.runtime.scheduler.options import check_precision


def picture(height: int = 112, width: int = 140, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ask(number: int = 0, **options: Any) -> Request:
    """One of a few requests that differ in everything that a request may have of its own."""
    sampling = (Sampling(), Sampling(temperature=1.0, seed=number), Sampling(repetition_penalty=1.3))[number % 3]
    images = () if number % 4 == 3 else (picture(seed=number),)
    kept = {} if not images or number % 4 == 0 else {"keep": 0.25 * (number % 4), "select": ("attention", "random")[number % 2]}
    chosen = {"max_new_tokens": 3 + number % 5, "sampling": sampling, **kept, **options}
    return Request.ask("What?" * (1 + number % 3), images, **chosen)


LONG = {"max_new_tokens": 150, "ignore_eos": True, "sampling": Sampling()}


@pytest.fixture(scope="module")
def alone(pipe: Pipeline) -> Callable[[int], tuple[int, ...]]:
    known: dict[int, tuple[int, ...]] = {}

    def tokens(number: int) -> tuple[int, ...]:
        if number not in known:
            known[number] = pipe.generate(ask(number)).tokens
        return known[number]

    return tokens


@pytest.fixture(scope="module")
def engine(pipe: Pipeline) -> Iterator[Engine]:
    with pipe.engine(EngineOptions(slots=3, prefill_tokens=7)) as opened:
        yield opened
        assert opened.stats().running == 0


def wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.002)


def is_empty(engine: Engine) -> bool:
    stats = engine.stats()
    return not (stats.waiting or stats.preparing or stats.ready or stats.running or stats.kv_tokens_used)


@settings(max_examples=12)
@given(numbers=st.lists(st.integers(0, 11), min_size=1, max_size=9))
def test_together_as_alone(numbers: list[int], engine: Engine, alone: Callable[[int], tuple[int, ...]]) -> None:
    tickets = [engine.submit(ask(number), client=str(number % 2), priority=number % 3) for number in numbers]
    answers = [ticket.answer(30) for ticket in tickets]
    assert [answer.tokens for answer in answers] == [alone(number) for number in numbers]
    assert is_empty(engine)


def test_threads_submit_and_read(engine: Engine, alone: Callable[[int], tuple[int, ...]]) -> None:
    def read(number: int) -> tuple[int, ...]:
        return tuple(chunk.token_id for chunk in engine.submit(ask(number)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, [*range(12)] * 2)) == [alone(number) for number in [*range(12)] * 2]


def test_an_event_loop_reads(engine: Engine, pipe: Pipeline) -> None:
    async def read(number: int) -> tuple[str, Answer]:
        ticket = engine.submit(ask(number))
        text = "".join([chunk.text async for chunk in ticket])
        return text, await ticket

    async def read_all() -> list[tuple[str, Answer]]:
        return await asyncio.gather(*map(read, range(8)))

    for number, (text, answer) in enumerate(asyncio.run(read_all())):
        assert text == answer.text == pipe.generate(ask(number)).text


def test_what_an_answer_says(engine: Engine, pipe: Pipeline) -> None:
    request = ask(1, **LONG)
    first, second = (engine.submit(request) for _ in range(2))
    found, expected = second.answer(30), pipe.generate(request)
    assert found.to_dict().keys() == expected.to_dict().keys()
    np.testing.assert_array_equal(found.selection.keep_indices, expected.selection.keep_indices)
    assert found.timings.queue_ms > 0
    assert found.prompt_tokens == expected.prompt_tokens
    assert found.kv_bytes < expected.kv_bytes  # of its tokens, not of whole blocks
    assert first.answer(30).tokens == found.tokens == expected.tokens


def reach(engine: Engine, state: str) -> tuple[Ticket, list[Ticket]]:
    """A ticket in a state, and those that keep it there."""
    others = [engine.submit(ask(4 * number, **LONG)) for number in range(3)]
    if state == "running":
        wait(lambda: others[0].state == "running")
        return others[0], others[1:]
    wait(lambda: all(ticket.state == "running" for ticket in others))
    more = [engine.submit(ask(4 * number, **LONG)) for number in range(3, 9)]
    wait(lambda: any(ticket.state == state for ticket in more))
    return next(ticket for ticket in more if ticket.state == state), [*others, *more]


@pytest.mark.parametrize("state", ["waiting", "ready", "running"])
def test_cancel(state: str, engine: Engine, alone: Callable[[int], tuple[int, ...]]) -> None:
    ticket, others = reach(engine, state)
    before = engine.stats().finished.get("cancelled", 0)
    ticket.cancel()
    ticket.cancel()
    with pytest.raises(CancelledError):
        ticket.answer(10)
    with pytest.raises(CancelledError):
        list(ticket)
    for other in others:
        other.cancel()
    wait(lambda: is_empty(engine))
    assert engine.stats().finished["cancelled"] >= before + 1
    assert engine.submit(ask(1)).answer(30).tokens == alone(1)


def test_cancel_inside_a_graph(bundle: Path) -> None:
    with load(bundle, options=SessionOptions(threads=1), vision_cache_bytes=0) as pipe:
        vision = pipe._sessions["vision"]
        large = Request.ask("What?", [picture(224, 224, seed) for seed in range(60)], max_new_tokens=2)
        inside, run = threading.Event(), vision.run

        def tell(*arguments: Any) -> Any:
            inside.set()
            return run(*arguments)

        vision.run = tell  # type: ignore[method-assign]
        began = time.monotonic()
        pipe.generate(large)
        whole = time.monotonic() - began
        inside.clear()
        with pipe.engine() as engine:
            ticket = engine.submit(large)
            inside.wait(10)
            ticket.cancel()
            began = time.monotonic()
            with pytest.raises(CancelledError):
                ticket.answer(30)
            assert time.monotonic() - began < max(0.5, whole / 2)


def test_a_deadline(engine: Engine) -> None:
    expected = r"not done within its deadline of 40 ms\. Give it more"
    with pytest.raises(DeadlineError, match=expected):
        engine.submit(ask(0, max_new_tokens=1500, ignore_eos=True), deadline_ms=40).answer(20)
    others = [engine.submit(ask(4 * number, max_new_tokens=1000, ignore_eos=True)) for number in range(3)]
    waits = engine.submit(ask(1), deadline_ms=40)
    with pytest.raises(DeadlineError, match=expected):
        waits.answer(20)
    for other in others:
        other.cancel()
    assert engine.submit(ask(3), deadline_ms=30_000).answer(30).tokens
    wait(lambda: is_empty(engine))


def test_too_many_wait(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(slots=1, max_waiting=2)) as engine:
        tickets = []

        def fill() -> None:
            for _ in range(20):
                tickets.append(engine.submit(ask(3, **LONG)))

        with pytest.raises(BusyError, match=r"2 requests wait already, which is the limit\. Ask again later"):
            fill()
        for ticket in tickets:
            ticket.cancel()
        wait(lambda: is_empty(engine))
        assert engine.submit(ask(3)).answer(30).tokens


def order_of(engine: Engine, submit: Callable[[], list[Ticket]]) -> list[int]:
    """The places of tickets in the order in which they began, behind one that holds the only slot."""
    first = engine.submit(ask(3, **LONG))
    wait(lambda: first.state == "running")
    tickets = submit()
    began: list[int] = []
    first.cancel()
    while len(began) < len(tickets):
        now = [place for place, ticket in enumerate(tickets) if ticket.state in ("prefill", "running", "done")]
        began += [place for place in now if place not in began]
        time.sleep(0.0005)
    for ticket in tickets:
        ticket.answer(30)
    return began


def test_clients_take_turns(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(slots=1)) as engine:
        many = {"max_new_tokens": 20, "ignore_eos": True, "sampling": Sampling()}

        def submit() -> list[Ticket]:
            greedy = [engine.submit(ask(3, **many), client="greedy") for _ in range(12)]
            return [*greedy, engine.submit(ask(3, **many), client="modest")]

        # Those that were prepared ahead go first.
        assert order_of(engine, submit).index(12) <= 4


def test_lower_numbers_go_first(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(slots=1)) as engine:
        some = {"max_new_tokens": 10, "ignore_eos": True, "sampling": Sampling()}
        place = order_of(engine, lambda: [engine.submit(ask(3, **some), priority=10 - number) for number in range(10)])
        assert place.index(9) <= 4


def test_a_failure_ends_one_request(engine: Engine, alone: Callable[[int], tuple[int, ...]]) -> None:
    running = engine.submit(ask(0, **LONG))
    for wrong, message in (
        (Request.ask("What?", ["/nope.png"]), "is not there"),
        (ask(1, max_new_tokens=100_000), "the limit is"),
        (ask(1, select="learned"), "trained"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.submit(wrong).answer(20)
    assert engine.submit(ask(1)).answer(30).tokens == alone(1)
    assert len(running.answer(60).tokens) == 150


def test_nan_ends_one_sequence(bundle: Path) -> None:
    with load(bundle, options=SessionOptions(threads=1)) as pipe:
        expected = pipe.generate(ask(0, **LONG)).tokens
        step = pipe.text_model.decoder.step

        def spoil(*arguments: Any) -> NextTokens:
            following = step(*arguments)
            if len(following.likeliest) == 2:
                following = NextTokens(following.scores, np.array([following.likeliest[0], -1]))
            return following

        with pipe.engine(EngineOptions(slots=2)) as engine:
            good = engine.submit(ask(0, **LONG))
            wait(lambda: good.state == "running")
            pipe.text_model.decoder.step = spoil  # type: ignore[method-assign]
            with pytest.raises(BackendError, match="NaN"):
                engine.submit(ask(4, **LONG)).answer(20)
            pipe.text_model.decoder.step = step  # type: ignore[method-assign]
            assert good.answer(60).tokens == expected
            assert engine.submit(ask(0, **LONG)).answer(60).tokens == expected


@pytest.mark.parametrize("error", [BackendError("the graph failed"), MemoryError("no more"), ValueError("a fault")])
def test_a_run_that_fails_ends_those_in_it(error: Exception, bundle: Path) -> None:
    with load(bundle, options=SessionOptions(threads=1)) as pipe:
        expected, step = pipe.generate(ask(0, **LONG)).tokens, pipe.text_model.step
        with pipe.engine(EngineOptions(slots=2)) as engine:
            tickets = [engine.submit(ask(4 * number, **LONG)) for number in range(2)]
            wait(lambda: all(ticket.state == "running" for ticket in tickets))

            def fail(*arguments: Any) -> Any:
                raise error

            pipe.text_model.step = fail  # type: ignore[method-assign]
            for ticket in tickets:
                with pytest.raises((BackendError, MachineError)):
                    ticket.answer(20)
            pipe.text_model.step = step  # type: ignore[method-assign]
            assert engine.submit(ask(0, **LONG)).answer(60).tokens == expected
            assert is_empty(engine)


def chat(image: np.ndarray, *turns: str, **options: Any) -> Request:
    """A chat about an image: questions and answers in turn."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": turns[0]}]
    messages = [{"role": "user", "content": content}]
    messages += [{"role": ("assistant", "user")[place % 2], "content": text} for place, text in enumerate(turns[1:])]
    return Request(messages, max_new_tokens=6, ignore_eos=True, **options)


def test_a_chat_goes_on_where_it_was(engine: Engine, pipe: Pipeline) -> None:
    image = picture(seed=77)
    first = engine.submit(chat(image, "What is the word?")).answer(30)
    longer = chat(image, "What is the word?", first.text, "Where is it?")
    again = engine.submit(longer).answer(30)
    assert again.reused_tokens >= first.prompt_tokens
    assert again.tokens == pipe.generate(longer).tokens
    assert pipe.generate(longer).reused_tokens == 0


def test_another_picture_or_other_kept_tokens_are_read_anew(engine: Engine, pipe: Pipeline) -> None:
    engine.submit(chat(picture(seed=78), "What is the word?")).answer(30)
    # Up to the first visual token all is the same, and that is hardly anything.
    for other in (
        chat(picture(seed=79), "What is the word?"),
        chat(picture(seed=78), "What is the word?", budget=ask(2).budget, select="random"),
    ):
        answer = engine.submit(other).answer(30)
        assert answer.reused_tokens == 0
        assert answer.tokens == pipe.generate(other).tokens


def test_nothing_is_remembered_where_that_is_off(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(prefix_reuse=False)) as engine:
        for _ in range(2):
            answer = engine.submit(chat(picture(seed=77), "What is the word?")).answer(30)
            assert answer.reused_tokens == 0


def test_draining_and_closing(pipe: Pipeline) -> None:
    engine = pipe.engine(EngineOptions(slots=2))
    tickets = [engine.submit(ask(4 * number, **LONG)) for number in range(4)]
    engine.drain()
    with pytest.raises(BusyError, match="no more requests are taken"):
        engine.submit(ask(0))
    engine.close()
    assert all(len(ticket.answer(0).tokens) == 150 for ticket in tickets)
    engine.close()
    hasty = pipe.engine(EngineOptions(slots=2))
    tickets = [hasty.submit(ask(4 * number, **LONG)) for number in range(4)]
    hasty.close(timeout=0)
    assert all(ticket.done for ticket in tickets)
    assert all(not thread.is_alive() for thread in hasty._threads)


def test_standing_still_is_seen(bundle: Path) -> None:
    with load(bundle, options=SessionOptions(threads=1)) as pipe, pipe.engine() as engine:
        assert engine.stats().idle_ms == 0
        hold, step = threading.Event(), pipe.text_model.step

        def stuck(*arguments: Any) -> Any:
            hold.wait(20)
            return step(*arguments)

        pipe.text_model.step = stuck  # type: ignore[method-assign]
        ticket = engine.submit(ask(3))
        wait(lambda: engine.stats().idle_ms > 100)
        hold.set()
        ticket.answer(20)
        assert engine.stats().idle_ms == 0


def test_int8_decoders_are_refused(pipe: Pipeline) -> None:
    spec = msgspec.structs.replace(pipe._sessions["decoder"].spec, precision="int8")
    with pytest.raises(OptionError, match=r"is int8, where an answer hangs on those beside it, and there are 8 slots\. Export"):
        check_precision(spec, 8)
    check_precision(spec, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"tokens_per_slot": 1}, "tokens_per_slot is 1"),
        ({"ttft_slo_ms": -1}, "ttft_slo_ms is -1"),
        ({"min_retained": 2}, "min_retained is 2"),
        ({"max_waiting": "many"}, "max_waiting is 'many'"),
    ],
)
def test_unusable_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineOptions(**options)


def test_options_that_this_pipeline_has_not(pipe: Pipeline) -> None:
    with pytest.raises(OptionError, match="tokens_per_slot is 1000000, this pipeline takes"):
        pipe.engine(EngineOptions(tokens_per_slot=1_000_000))
    with pytest.raises(OptionError, match=r"ttft_slo_ms is 100, and this bundle has no latencies"):
        pipe.engine(EngineOptions(ttft_slo_ms=100))


class Odd:
    """A grammar that fails in a way of its own."""

    finished = False

    def start(self) -> Odd:
        return self

    def mask(self, logits: np.ndarray) -> None:
        raise BaseException("a panic in another language")

    def accept(self, token: int) -> None:
        raise AssertionError


def test_a_grammar_that_fails_ends_its_own_request(engine: Engine, pipe: Pipeline) -> None:
    running = engine.submit(ask(0, **LONG))
    wait(lambda: running.state == "running")
    with pytest.raises(BackendError, match="nobody foresaw: a panic in another language"):
        engine.submit(Request.ask("What?", max_new_tokens=4, grammar=Odd())).answer(20)
    assert running.answer(60).tokens == pipe.generate(ask(0, **LONG)).tokens


@pytest.mark.parametrize("deadline_ms", [0, -1, float("inf"), float("nan"), 1e300, "soon"])
def test_deadlines_that_are_none(deadline_ms: Any, engine: Engine) -> None:
    if deadline_ms == 1e300:
        assert engine.submit(ask(3), deadline_ms=deadline_ms).answer(20).tokens
        return
    with pytest.raises(RequestError, match="deadline_ms is"):
        engine.submit(ask(3), deadline_ms=deadline_ms)


def test_the_thread_survives_what_nobody_foresaw(bundle: Path, alone: Callable[[int], tuple[int, ...]]) -> None:
    with load(bundle, options=SessionOptions(threads=1)) as pipe, pipe.engine(EngineOptions(slots=2)) as engine:
        leave = engine._rows.leave

        def fail(*arguments: Any) -> None:
            raise MemoryError("no room to move")

        engine._rows.leave = fail  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="no room to move"):
            engine.submit(ask(3)).answer(20)
        engine._rows.leave = leave  # type: ignore[method-assign]
        assert engine.submit(ask(3)).answer(20).tokens == alone(3)


def test_an_engine_that_can_not_go_on_says_so(bundle: Path) -> None:
    with load(bundle, options=SessionOptions(threads=1)) as pipe, pipe.engine(EngineOptions(slots=2)) as engine:

        def fail(*arguments: Any) -> None:
            raise MemoryError("no more")

        engine._rows.leave = engine._rows.reset = fail  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="no more"):
            engine.submit(ask(3)).answer(20)
        with pytest.raises(BusyError):
            engine.submit(ask(3))


def test_a_lane_that_hangs_does_not_hold_up_the_end(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.runtime.scheduler.engine._PATIENCE", 0.2)
    with load(bundle, options=SessionOptions(threads=1)) as pipe:
        engine, hold, prepare = pipe.engine(), threading.Event(), pipe.prepare

        def hang(request: Request) -> Any:
            hold.wait(20)
            return prepare(request)

        pipe.prepare = hang  # type: ignore[method-assign]
        ticket = engine.submit(ask(0))
        wait(lambda: ticket.state == "preparing")
        engine.close(timeout=0)
        with pytest.raises(CancelledError):
            ticket.answer(5)
        hold.set()
        for thread in engine._threads:
            thread.join(10)


def test_another_chat_does_not_take_what_a_longer_one_left(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(slots=3)) as engine:
        system = {"role": "system", "content": "You are a helpful assistant. Say what the image shows."}

        def talk(image: np.ndarray, *turns: str) -> Request:
            return Request([system, *chat(image, *turns).messages], max_new_tokens=6, ignore_eos=True)

        first = engine.submit(talk(picture(seed=1), "What is the word?")).answer(30)
        other = engine.submit(talk(picture(seed=2), "What is the word?")).answer(30)
        assert 8 <= other.reused_tokens < first.prompt_tokens / 2
        assert other.tokens == pipe.generate(talk(picture(seed=2), "What is the word?")).tokens
        again = talk(picture(seed=1), "What is the word?", first.text, "Where is it?")
        answer = engine.submit(again).answer(30)
        assert answer.reused_tokens >= first.prompt_tokens
        assert answer.tokens == pipe.generate(again).tokens


def test_times_are_those_that_a_reader_sees(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(slots=4, prefill_tokens=4)) as engine:
        others = [engine.submit(ask(4 * number, **LONG)) for number in range(3)]
        wait(lambda: all(other.state == "running" for other in others))
        ticket = engine.submit(ask(0, **LONG))
        answer = ticket.answer(60)
        assert ticket.first_token_at is not None
        assert ticket.finished_at is not None
        assert answer.timings.ttft_ms == pytest.approx(1e3 * (ticket.first_token_at - ticket.submitted), rel=0.05)
        assert sum(answer.timings.decode_ms) == pytest.approx(1e3 * (ticket.finished_at - ticket.first_token_at), rel=0.05)
        assert len(ticket.gaps_s) == len(answer.tokens) - 1


def test_a_slot_has_as_many_tokens_as_were_asked_for(pipe: Pipeline) -> None:
    with pipe.engine(EngineOptions(tokens_per_slot=50)) as engine:
        prompt = engine.submit(Request.ask("What?", max_new_tokens=1)).answer(20).prompt_tokens
        fits = engine.submit(Request.ask("What?", max_new_tokens=50 - prompt, ignore_eos=True))
        assert len(fits.answer(20).tokens) == 50 - prompt
        with pytest.raises(RequestError, match="the limit is 50"):
            engine.submit(Request.ask("What?", max_new_tokens=51 - prompt, ignore_eos=True)).answer(20)


def test_what_is_no_message_is_the_callers(engine: Engine) -> None:
    with pytest.raises(RequestError):
        engine.submit(Request([1])).answer(20)  # type: ignore[list-item]

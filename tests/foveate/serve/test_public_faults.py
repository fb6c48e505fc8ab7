"""Faults that other servers had, each once a public issue, and the tests that show that this one has not.

| fault | where it was | tests |
|---|---|---|
| redirects followed to internal hosts | vllm#57157, sglang#17269 | test_redirects_to_internal_hosts, test_sources.test_what_is_no_image_is_refused, test_sources.test_a_name_that_leads_inside_is_not_followed, test_sources.test_a_name_is_looked_up_once_and_its_address_kept |
| pixel bomb decoded before the limit | vllm#47010 | test_a_pixel_bomb_is_not_decoded |
| client raises the frame limit | vllm#51969, vllm#38636 | test_a_client_cannot_raise_the_limit_of_frames, test_a_client_cannot_raise_the_limit_of_pixels |
| request too large spins for ever | vllm#25890 | test_a_request_that_never_fits_is_refused_before_it_is_seen, test_refusals.test_what_cannot_be_used_is_named |
| client gone, generation goes on | llama.cpp#24496 | test_a_client_that_leaves_during_the_prompt, test_life.test_a_client_that_leaves_frees_its_slot_at_once, test_engine.test_cancel_inside_a_graph |
| another request's picture from a cache | vllm#20261 | test_pictures_that_look_alike_to_a_cache, test_engine.test_another_picture_or_other_kept_tokens_are_read_anew |
| concurrent requests mixed up | vllm#18360 | test_many_clients_get_their_own_answers, test_engine.test_together_as_alone |
| one bad image kills the engine | vllm#8954 | test_bad_images_leave_others_alone, test_engine.test_nan_ends_one_sequence |
| long vision work blocks everyone | vllm#18329 | test_long_vision_work_blocks_nobody |
| unfair queue | sglang#10063 | test_one_key_cannot_crowd_out_another, test_queue.test_turns_are_by_what_was_spent, test_engine.test_clients_take_turns |
| host memory grows | llama.cpp#27725 | test_memory_stays, test_soak.test_a_short_soak |
| fetching images blocks the event loop | litellm#39839 | test_health_is_answered_while_images_are_fetched, test_sources.test_a_slow_drip_ends_in_time_and_keeps_nobody_waiting |
| waiting requests hold the cache | vllm#31857 | test_those_that_wait_hold_no_cache |
| healthy while stuck | llama.cpp#27388 | test_life.test_stuck, test_engine.test_standing_still_is_seen |
"""  # noqa: E501

from __future__ import annotations

import gc
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile import BAD_ADDRESSES, clip, data, picture, png_of
from foveate.bench.server import tree_memory
from foveate.engines import SessionOptions
from foveate.runtime import ImageLimits, Pipeline, VideoLimits, load
from foveate.runtime.scheduler import EngineOptions
from tests.foveate.serve.conftest import CHAT, QUESTION, Running, Serve, wait_until
from tests.foveate.serve.test_life import ONE, send
from tests.foveate.serve.test_refusals import check

PLACES = {
    "test_engine": "tests.runtime.scheduler.test_engine",
    "test_queue": "tests.runtime.scheduler.test_queue",
    **{name: f"tests.foveate.serve.{name}" for name in ("test_sources", "test_refusals", "test_life", "test_soak")},
}


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"(?:(test_\w+)\.)?(test_\w+)(?=,| \|)", __doc__ or "")
    assert len(named) > 20
    for module, name in named:
        assert callable(getattr(import_module(PLACES[module]) if module else import_module(__name__), name)), name


def asks(*addresses: str, text: str = QUESTION) -> list[dict[str, Any]]:
    """A chat about pictures."""
    parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def told(response: httpx2.Response) -> tuple[str, list[float]]:
    """What an answer says, and how likely each token was: another picture makes another of these."""
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"]["content"], [round(row["logprob"], 3) for row in choice["logprobs"]["content"]]


EXACT = {"max_tokens": 5, "ignore_eos": True, "logprobs": True}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{server.server_port}/secret")
            self.end_headers()
            return
        if self.path == "/slow":
            server.hold.wait(20)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(picture(56, 56))

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[Any]:
    """A host that redirects to itself by another name, and answers slowly where it is asked to."""
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads, made.seen, made.hold = True, [], threading.Event()
    made.name = f"127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.hold.set()
    made.shutdown()
    made.server_close()


def test_redirects_to_internal_hosts(serve: Serve, host: Any) -> None:
    with serve(allow_hosts=(host.name,)) as server:
        assert server.chat(messages=asks(f"http://{host.name}/good")).status_code == 200
        check(server.chat(messages=asks(f"http://{host.name}/redirect")), 400, "is redirected, which is not followed")
        assert host.seen == ["/good", "/redirect"]


def test_health_is_answered_while_images_are_fetched(serve: Serve, host: Any) -> None:
    """As many as there are threads that fetch, and more."""
    with serve(allow_hosts=(host.name,)) as server, ThreadPoolExecutor(40) as pool:
        fetching = [pool.submit(server.chat, messages=asks(f"http://{host.name}/slow")) for _ in range(40)]
        wait_until(lambda: len(host.seen) >= 32)
        assert server.http.get("/health").status_code == 200
        assert server.chat().status_code == 200
        assert not any(one.done() for one in fetching)
        host.hold.set()
        assert {one.result().status_code for one in fetching} == {200}


BOMBS = {
    "png": png_of(50_000, 50_000),
    "one that Pillow opens": png_of(9_000, 9_000),
    "gif": clip(1).replace(b"\x38\x00\x38\x00", b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("bomb", [*BOMBS])
def test_a_pixel_bomb_is_not_decoded(server: Running, bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header is enough."""
    monkeypatch.setattr(Image.Image, "load", lambda *arguments: pytest.fail("it was decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *arguments: pytest.fail("it was decoded"))
    named = "messages" if bomb == "one that Pillow opens" else None  # Pillow's own limit knows of no field
    check(server.chat(messages=asks(data(BOMBS[bomb]))), 400, "pixels", param=named)


@pytest.fixture(scope="module")
def strict(reference_bundle: Path) -> Iterator[Pipeline]:
    """A pipeline of an operator who allows little."""
    limits = {"limits": ImageLimits(max_pixels=60_000), "video_limits": VideoLimits(max_frames=4, max_pixels=60_000)}
    with load(reference_bundle, options=SessionOptions(threads=1), verify=False, **limits) as pipe:  # type: ignore[arg-type]
        yield pipe


def test_a_client_cannot_raise_the_limit_of_frames(serve: Serve, strict: Pipeline) -> None:
    with serve(pipeline=strict, max_images=8) as server:

        def ask(part: dict[str, Any], **own: Any) -> httpx2.Response:
            return server.chat(messages=[{"role": "user", "content": [part]}], foveate=own)

        file = {"type": "video_url", "video_url": data(clip(20), "video/gif")}
        assert (
            ask(file).json()["foveate"]["visual_tokens"] == ask(file, fps=1000, max_frames=4).json()["foveate"]["visual_tokens"]
        )
        check(ask(file, max_frames=5), 400, "the limit is 4", param="foveate.max_frames")
        stills = [data(picture(56, 56, seed=number)) for number in range(9)]
        assert ask({"type": "video", "video": stills[:4]}).status_code == 200
        check(ask({"type": "video", "video": stills[:5]}), 400, "expected 1 to 4", param="foveate.max_frames")
        check(ask({"type": "video", "video": stills[:5]}, max_frames=5), 400, "the limit is 4", param="foveate.max_frames")
        check(ask({"type": "video", "video": stills}), 400, "the limit is 8", param="messages")


def test_a_client_cannot_raise_the_limit_of_pixels(serve: Serve, strict: Pipeline) -> None:
    with serve(pipeline=strict) as server:
        large = asks(data(picture(300, 300)))
        for own in ({}, {"max_pixels": 100_000}, {"min_pixels": 100_000}, {"max_visual_tokens": 10_000}):
            check(server.chat(messages=large, foveate=own), 400, "the limit is 60000", param="messages")
        small, most = asks(data(picture(56, 56))), strict.most_pixels
        assert most is not None
        assert server.chat(messages=small, foveate={"max_pixels": most}).status_code == 200
        check(server.chat(messages=small, foveate={"max_pixels": most + 1}), 400, f"own, {most}", param="foveate.max_pixels")
        check(server.chat(messages=small, foveate={"min_pixels": most + 1}), 400, "min_pixels")


def test_a_request_that_never_fits_is_refused_before_it_is_seen(
    serve: Serve, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(EngineOptions(slots=2, tokens_per_slot=128)) as server:
        seen: list[Any] = []
        run = pipe._run_vision
        monkeypatch.setattr(pipe, "_run_vision", lambda feeds: (seen.append(feeds), run(feeds))[1])
        large = asks(data(picture(500, 500, seed=11)))
        for own in ({}, {"keep": 0.9}, {"keep_tokens": 127}, {"keep": "auto"}):
            began = time.monotonic()
            named = "foveate.keep" if "keep" in own else "max_tokens"  # the one that the body has
            check(server.chat(messages=large, foveate=own), 400, "the limit is 128", param=named)
            assert time.monotonic() - began < 10
        check(server.chat(messages=asks(text="What? " * 200)), 400, "the limit is 128", param="max_tokens")
        assert not seen
        assert server.chat(messages=large, foveate={"keep_tokens": 20}).status_code == 200
        assert len(seen) == 1


def test_a_client_that_leaves_during_the_prompt(serve: Serve) -> None:
    """Pieces of one token make a prompt long."""
    with serve(EngineOptions(slots=2, tokens_per_slot=1024, prefill_tokens=1)) as server:
        runs = send(server, {"stream": True})
        wait_until(lambda: server.engine.stats().running)
        reads = send(server, {"messages": asks(text="What is it? " * 100), "max_tokens": 5})
        wait_until(lambda: server.engine._rows.filling is not None)
        reads.close()
        wait_until(lambda: server.engine.stats().finished.get("cancelled") == 1)
        stats = server.engine.stats()
        assert (stats.running, server.engine._rows.filling) == (1, None)
        assert "length" not in stats.finished
        runs.close()
        wait_until(lambda: server.state.active == 0)


def test_pictures_that_look_alike_to_a_cache(server: Running) -> None:
    """Same bytes in another shape, same indices with another palette, one pixel of difference: each is another picture."""
    chance = np.random.default_rng(3)
    pixels = chance.integers(0, 256, (112, 56, 3), dtype=np.uint8)
    indices = Image.fromarray(chance.integers(0, 2, (112, 56), dtype=np.uint8), "P")
    pictures = [Image.fromarray(pixels), Image.fromarray(pixels.reshape(56, 112, 3))]
    for palette in ([0, 0, 0, 255, 0, 0], [0, 0, 255, 255, 255, 255]):
        painted = indices.copy()
        painted.putpalette(palette)
        pictures.append(painted)
    files = [io.BytesIO() for _ in pictures]
    for one, file in zip(pictures, files, strict=True):
        one.save(file, "PNG")
    bodies = [{"messages": asks(data(file.getvalue())), **EXACT} for file in files]
    bodies += [
        {**bodies[0], "foveate": {"max_visual_tokens": 4}},
        {**bodies[0], "messages": asks(data(files[0].getvalue()), text="?")},
    ]
    first = [told(server.chat(**body)) for body in bodies]
    assert len({str(one) for one in first}) == len(bodies)
    assert [told(server.chat(**body)) for body in reversed(bodies)] == first[::-1]


def test_many_clients_get_their_own_answers(server: Running) -> None:
    bodies = [
        {
            "messages": asks(data(picture(56 + 28 * (number % 3), 84, seed=number))),
            **EXACT,
            "max_tokens": 3 + number,
            "foveate": own,
        }
        for number, own in enumerate([{}, {"keep": 0.5}, {"keep": 0.25}, {"keep_tokens": 2}] * 2)
    ]
    alone = [told(server.chat(**body)) for body in bodies]
    assert len({str(one) for one in alone}) == len(bodies)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda body: told(server.chat(**body)), bodies)) == alone


def test_bad_images_leave_others_alone(server: Running) -> None:
    """While they come, another's answer grows as ever."""
    good = {"messages": asks(data(picture(84, 84, seed=5))), **EXACT, "max_tokens": 120}
    expected = told(server.chat(**good))
    truncated = picture(112, 112, "JPEG")[:-300]
    bad = [*BAD_ADDRESSES, data(truncated), data(png_of(400, 400)), data(picture(3_000, 4)), data(b"GIF89a" + bytes(50))]
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(server.chat, **good)
        refused = list(pool.map(lambda address: server.chat(messages=asks(address)).status_code, bad))
        assert refused == [400] * len(bad)
        assert told(running.result()) == expected


def test_long_vision_work_blocks_nobody(serve: Serve, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are answered, and those that run go on, for as long as a picture takes."""
    with serve() as server, ThreadPoolExecutor(1) as pool:
        looked, hold, run = threading.Event(), threading.Event(), pipe._run_vision

        def look(feeds: Any) -> Any:
            looked.set()
            hold.wait(20)
            return run(feeds)

        monkeypatch.setattr(pipe, "_run_vision", look)
        long = pool.submit(server.chat, messages=asks(data(picture(84, 84, seed=77))))
        assert looked.wait(10)
        try:
            for _ in range(6):
                assert server.chat(max_tokens=30, ignore_eos=True).status_code == 200
            assert not long.done()
        finally:
            hold.set()
        assert long.result().status_code == 200


def test_one_key_cannot_crowd_out_another(serve: Serve) -> None:
    with serve(ONE, api_keys=("greedy", "modest")) as server, ThreadPoolExecutor(14) as pool:
        order: list[str] = []

        def ask(key: str) -> None:
            # Long enough that none ends while another arrives.
            body = {"messages": asks(text="Hello"), "max_tokens": 150, "ignore_eos": True}
            response = server.http.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"})
            assert response.status_code == 200
            order.append(key)

        many = [pool.submit(ask, "greedy") for _ in range(12)]
        wait_until(lambda: server.engine.stats().waiting >= 8)
        done = len(order)
        pool.submit(ask, "modest").result()
        # Before it go those that were prepared ahead, not all that came earlier.
        assert order.index("modest") - done <= 5
        for one in many:
            one.result()


def test_those_that_wait_hold_no_cache(serve: Serve) -> None:
    """Many more than there are slots, each as long as a slot: none keeps another from its end."""
    with serve(EngineOptions(slots=2, tokens_per_slot=100)) as server, ThreadPoolExecutor(12) as pool:
        body = {"messages": asks(text="Hello"), "max_tokens": 60, "ignore_eos": True}
        asked = [pool.submit(server.chat, **body) for _ in range(8)]
        while not all(one.done() for one in asked):
            stats = server.engine.stats()
            assert stats.running <= 2
            assert stats.kv_tokens_used <= stats.running * 100
            time.sleep(0.01)
        assert {one.result().json()["usage"]["completion_tokens"] for one in asked} == {60}


def test_memory_stays(serve: Serve) -> None:
    """Of this process, over requests with pictures that no cache knows."""
    with serve() as server:

        def ask_many(numbers: range) -> int:
            for number in numbers:
                assert server.chat(messages=asks(data(picture(140, 140, seed=number)))).status_code == 200
            gc.collect()
            memory = tree_memory(os.getpid())
            assert memory is not None
            assert memory.private_bytes is not None
            return memory.private_bytes

        before = ask_many(range(30))
        # Each picture is 0.6 MB as patches, which an answer holds as long as somebody holds it.
        assert ask_many(range(30, 90)) - before < 12e6

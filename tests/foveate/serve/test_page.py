"""The page of `foveate serve` in a real browser, against a real server."""

from __future__ import annotations

import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, Request, expect, sync_playwright

from foveate.runtime import Answer, Pipeline, load
from foveate.runtime import Request as Asked
from foveate.runtime.scheduler import Engine
from foveate.runtime.stages import FIRST_TOKEN
from foveate.serve.app import PAGE, make_app
from foveate.serve.options import Served, ServeOptions
from foveate.serve.server import address_of, listen
from tests.runtime import clips

SCENE = Path(__file__).parents[3] / "models" / "demo-scenes" / "images" / "000000.png"
QUESTION = "Where is the pink triangle?"
KEY = "open sesame"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
STREAMED = """place => { window.lengths = []; new MutationObserver(() => window.lengths.push(place.textContent.length))
    .observe(place, { childList: true, characterData: true, subtree: true }); }"""
SHIFTS = """window.shift = 0; new PerformanceObserver(list => { for (const entry of list.getEntries())
    if (!entry.hadRecentInput) window.shift += entry.value; }).observe({ type: "layout-shift", buffered: true });"""
BRIGHTNESS = """([rows, columns]) => {
    const canvas = document.getElementById("canvas"), context = canvas.getContext("2d");
    return Array.from({ length: rows * columns }, (_, token) => {
        const x = Math.floor((token % columns + 0.5) * canvas.width / columns);
        const y = Math.floor((Math.floor(token / columns) + 0.5) * canvas.height / rows);
        const [red, green, blue] = context.getImageData(x, y, 1, 1).data;
        return red + green + blue;
    });
}"""


@pytest.fixture(scope="module")
def pipe(reference_bundle: Path) -> Iterator[Pipeline]:
    with load(reference_bundle) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(pipe: Pipeline) -> Iterator[Engine]:
    with pipe.engine() as opened:
        yield opened


Address = Callable[..., str]


@pytest.fixture(scope="module")
def address(pipe: Pipeline, engine: Engine, reference_bundle: Path) -> Iterator[Address]:
    """Serves the bundle under some names and keys, and says where."""

    def app(names: tuple[str, ...], keys: tuple[str, ...]) -> uvicorn.Config:
        served = [Served(name, pipe, engine, reference_bundle) for name in names]
        return uvicorn.Config(make_app(served, ServeOptions(api_keys=keys)), log_config=None, lifespan="off")

    stops: list[Callable[[], None]] = []

    @cache
    def started(names: tuple[str, ...] = ("tiny",), keys: tuple[str, ...] = ()) -> str:
        server, found = uvicorn.Server(app(names, keys)), listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join()

        stops.append(stop)
        return address_of(found)

    yield started
    for stop in stops:
        stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, _chromium(playwright) as opened:
        yield opened


def _chromium(playwright: Playwright) -> Browser:
    found = [path for path in map(shutil.which, CHROMIUMS) if path] + [playwright.chromium.executable_path]
    if not Path(found[0]).exists():
        pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
    return playwright.chromium.launch(executable_path=found[0])


class Shown:
    """The page as a user has it.

    Attributes:
        page: Playwright's.
        asked: the `foveate` of every body that was sent.
        faults: what the browser's console has of errors.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[dict[str, object]] = []
        self.faults: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        if request.method == "POST":
            self.asked.append(request.post_data_json["foveate"])

    def open(self, address: str) -> None:
        self.page.goto(address)
        expect(self.page.get_by_role("status")).to_have_text("ready")

    def drop(self, name: str, kind: str, data: bytes) -> None:
        """As if a file came from another window."""
        file = self.page.evaluate_handle(
            "([name, type, bytes]) => { const drop = new DataTransfer();"
            "drop.items.add(new File([new Uint8Array(bytes)], name, { type })); return drop; }",
            [name, kind, list(data)],
        )
        self.page.dispatch_event("#stage", "drop", {"dataTransfer": file})

    def ask(self, question: str) -> None:
        box = self.page.get_by_label("Question")
        box.fill(question)
        box.press("Enter")

    def wait_for_both(self) -> None:
        expect(self.page.locator("#same")).to_be_visible()

    def width(self) -> int:
        width: int = self.page.evaluate("document.documentElement.scrollWidth")
        return width


@pytest.fixture
def shown(browser: Browser) -> Iterator[Shown]:
    with browser.new_context(viewport={"width": 1200, "height": 900}, reduced_motion="reduce") as context:
        context.set_default_timeout(30_000)
        context.add_init_script(SHIFTS)
        shown = Shown(context.new_page())
        yield shown
        assert shown.faults == []


@pytest.fixture(autouse=True, scope="module")
def _patience() -> Iterator[None]:
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


def alone(pipe: Pipeline, keep: float) -> Answer:
    return pipe.generate(Asked.ask(QUESTION, SCENE, keep=keep))


def test_an_answer_streams_and_its_tokens_light_up(shown: Shown, address: Address, pipe: Pipeline) -> None:
    shown.open(address())
    shown.drop("scene.png", "image/png", SCENE.read_bytes())
    shown.page.locator("#answer").evaluate(STREAMED)
    shown.ask(QUESTION)
    shown.wait_for_both()
    quarter, whole = alone(pipe, 0.25), alone(pipe, 1)
    assert shown.asked == [{"keep": 0.25, "explain": True}, {"keep": 1}]
    assert shown.page.locator("#answer").text_content() == quarter.text
    assert shown.page.locator("#whole").text_content() == whole.text
    assert 0 < shown.page.evaluate("window.lengths")[0] < len(quarter.text), "the text came at once"
    kept = quarter.selection.keep_indices
    expect(shown.page.locator("#canvas")).to_have_attribute("data-kept", str(len(kept)))
    ((_, rows, columns),) = quarter.grids
    lit = np.array(shown.page.evaluate(BRIGHTNESS, [rows, columns]))
    shown.page.get_by_label("picture", exact=True).check(force=True)
    plain = np.array(shown.page.evaluate(BRIGHTNESS, [rows, columns]))
    stays = np.isin(np.arange(rows * columns), kept)
    assert (lit[stays] == plain[stays]).all()
    assert (lit[~stays] < 0.5 * plain[~stays] + 30).all()
    shown.page.get_by_label("scores").check(force=True)
    assert (np.array(shown.page.evaluate(BRIGHTNESS, [rows, columns])) != plain).any()
    assert shown.page.evaluate("window.shift") < 0.02


def test_what_it_took_stands_beside_keep_1(shown: Shown, address: Address, pipe: Pipeline) -> None:
    shown.open(address())
    shown.drop("scene.png", "image/png", SCENE.read_bytes())
    shown.ask(QUESTION)
    shown.wait_for_both()
    quarter, whole = alone(pipe, 0.25), alone(pipe, 1)
    same = "same as keep 1" if quarter.text == whole.text else "not the same as keep 1"
    expect(shown.page.locator("#same")).to_have_text(same)
    read = shown.page.get_by_role("row", name="visual tokens read").get_by_role("cell").all_text_contents()
    total = quarter.selection.num_visual_tokens
    assert read == [f"{len(quarter.selection.keep_indices)} of {total}", f"{total} of {total}"]
    small, large = shown.page.get_by_role("row", name="KV cache").get_by_role("cell").all_text_contents()
    assert float(small.split()[0]) < float(large.split()[0])
    for name in ("keep 0.25", "keep 1"):
        assert "prefill" in (shown.page.get_by_role("img", name=f"{name}:").get_attribute("aria-label") or "")


def test_keep_moves_by_keyboard_and_is_asked_again(shown: Shown, address: Address, pipe: Pipeline) -> None:
    shown.open(address())
    shown.drop("scene.png", "image/png", SCENE.read_bytes())
    shown.ask(QUESTION)
    shown.wait_for_both()
    keep = shown.page.get_by_label("keep: share of the visual tokens")
    keep.focus()
    for _ in range(5):
        shown.page.keyboard.press("ArrowRight")
    kept = len(alone(pipe, 0.5).selection.keep_indices)
    expect(shown.page.locator("#canvas")).to_have_attribute("data-kept", str(kept))
    expect(shown.page.locator("#answer-name")).to_have_text("keep 0.5")
    assert shown.asked[2:] == [{"keep": 0.5, "explain": True}], "keep 1 was known, and the values in between were passed over"
    expect(keep).to_be_focused()
    shown.page.get_by_role("button", name=re.compile("keep 0.25")).press("Enter")
    expect(shown.page.locator("#answer-name")).to_have_text("keep 0.25")
    expect(keep).to_have_value("0.25")


def test_a_video_shows_each_of_its_frames_on_a_narrow_screen(shown: Shown, address: Address, pipe: Pipeline) -> None:
    clip = clips.encode(clips.moving_square(12), rate=4)
    shown.page.set_viewport_size({"width": 320, "height": 700})
    shown.open(address())
    assert shown.width() == 320
    shown.page.get_by_label("Choose a file").set_input_files({"name": "clip.mp4", "mimeType": "video/mp4", "buffer": clip})
    expect(shown.page.get_by_label("Your video")).to_be_visible()
    shown.ask("What colour is the square?")
    shown.wait_for_both()
    answer = pipe.generate(Asked.ask("What colour is the square?", videos=clip, keep=0.25))
    frames = shown.page.get_by_label("Images and frames").get_by_role("button")
    expect(frames).to_have_count(len(answer.pictures))
    told = [int((text or "").rpartition(": ")[2].split()[0]) for text in frames.all_text_contents()]
    assert told == [np.isin(picture.tokens, answer.selection.keep_indices).sum() for picture in answer.pictures]
    frames.nth(1).press("Enter")
    expect(frames.nth(1)).to_have_attribute("aria-pressed", "true")
    assert shown.width() == 320


def test_errors_are_told_in_words(shown: Shown, address: Address) -> None:
    shown.open(address())
    alert = shown.page.get_by_role("alert")
    shown.ask(QUESTION)
    expect(alert).to_contain_text("There is no picture yet")
    shown.drop("notes.txt", "text/plain", b"hello")
    expect(alert).to_contain_text("notes.txt is neither an image nor a video")
    shown.drop("broken.png", "image/png", b"no picture")
    expect(alert).to_be_hidden()
    shown.ask(QUESTION)
    expect(alert).to_contain_text(re.compile("image", re.IGNORECASE))
    shown.page.get_by_role("button", name="Close").press("Enter")
    expect(alert).to_be_hidden()
    expect(shown.page.get_by_label("Question")).to_be_focused()
    assert all("status of 400" in fault for fault in shown.faults)
    shown.faults.clear()


def test_stop_ends_the_request_on_the_server_too(shown: Shown, address: Address, engine: Engine) -> None:
    shown.open(address())
    shown.drop("large.jpg", "image/jpeg", _large())
    before = engine.stats().finished.get("cancelled", 0)
    shown.ask(QUESTION)
    expect(shown.page.get_by_role("status")).to_have_text("waiting for the first token")
    shown.page.get_by_role("button", name="Stop").press("Enter")
    expect(shown.page.get_by_role("status")).to_have_text("stopped")
    expect(shown.page.get_by_role("alert")).to_be_hidden()
    until = time.monotonic() + 30
    while engine.stats().finished.get("cancelled", 0) == before:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_server_with_keys_asks_for_one_and_offers_its_models(shown: Shown, address: Address) -> None:
    shown.open(address(("first", "second"), (KEY,)))
    key = shown.page.get_by_label("This server asks for an API key")
    expect(key).to_be_focused()
    key.fill(KEY)
    key.press("Enter")
    expect(key).to_be_hidden()
    shown.page.get_by_label("Model", exact=True).select_option("second")
    shown.drop("scene.png", "image/png", SCENE.read_bytes())
    shown.ask(QUESTION)
    shown.wait_for_both()
    assert all("status of 401" in fault for fault in shown.faults)
    shown.faults.clear()


def test_stages_have_the_colours_of_the_reports() -> None:
    style = (PAGE / "page.css").read_text()
    assert dict(re.findall(r"--stage-(\w+): (#\w+);", style)) == {stage.name: stage.colour for stage in FIRST_TOKEN}


def _large() -> bytes:
    """A JPEG of a scene that takes the vision tower a while."""
    file = io.BytesIO()
    with Image.open(SCENE) as scene:
        scene.resize((1600, 1200)).convert("RGB").save(file, "JPEG")
    return file.getvalue()

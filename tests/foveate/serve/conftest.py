"""The reference bundle behind a real server on a free port, in a thread of this process."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

from foveate.runtime import Pipeline, load
from foveate.runtime.scheduler import Engine, EngineOptions
from foveate.serve import Served, ServeOptions, make_app
from foveate.serve.calls import State
from foveate.serve.server import address_of, listen

SCENES = Path(__file__).parents[3] / "models" / "demo-scenes"
PICTURE = next(iter(sorted((SCENES / "images").iterdir())))
IMAGE = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
QUESTION = "What colour is the circle on the left?"
ASK = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": QUESTION}]}]
TEXT = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


@dataclass
class Running:
    """A server.

    Attributes:
        url: where it listens.
        http: a client of it.
        state: what its requests share.
        engine: of its first bundle.
    """

    url: str
    http: httpx2.Client
    state: State
    engine: Engine

    def openai(self, **options: Any) -> openai.OpenAI:
        """The official client, which asks once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def chat(self, **body: Any) -> httpx2.Response:
        """A chat; a short text where nothing else is said."""
        return self.http.post(CHAT, json={"messages": TEXT, "max_tokens": 4, **body})


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def pipe(reference_bundle: Path) -> Iterator[Pipeline]:
    with load(reference_bundle, verify=False) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def serve(pipe: Pipeline, reference_bundle: Path) -> Serve:
    """Serves the reference bundle in some way."""

    @contextmanager
    def serving(
        engine: EngineOptions | None = None,
        names: tuple[str, ...] = ("tiny",),
        pipeline: Pipeline | None = None,
        **options: Any,
    ) -> Iterator[Running]:
        loaded = pipeline or pipe
        opened = loaded.engine(engine or EngineOptions(slots=4, tokens_per_slot=1024))
        app = make_app([Served(name, loaded, opened, reference_bundle) for name in names], ServeOptions(**options))
        found = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", access_log=False))
        thread = threading.Thread(target=server.run, args=([found],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        url = address_of(found)
        try:
            with httpx2.Client(base_url=url, timeout=60) as client:
                yield Running(url, client, app.state.server, opened)
        finally:
            server.should_exit = True
            thread.join(20)
            opened.close(20)
            found.close()

    return serving


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """One that most tests share."""
    with serve() as running:
        yield running


def wait_until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Until something holds, which it has to in time."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)

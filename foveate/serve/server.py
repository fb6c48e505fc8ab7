"""Runs the application until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import msgspec
import uvicorn
from starlette.applications import Starlette

from foveate.engines import MachineError
from foveate.serve.calls import State

_KEEP_ALIVE_S = 75
_LOOK_S = 0.05
_FAREWELL_S = 2
"""For the last bytes of answers; who does not read them by then is left."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to.

    Args:
        host: name or address; 127.0.0.1 is for this machine alone.
        port: 0 for any that is free.

    Raises:
        MachineError: it can't be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        fact = f"{host}:{port} can't be listened at: {error.strerror or error}"
        raise MachineError(f"{fact}. Choose another port, or 0 for any that is free.", options=("host", "port")) from error


def address_of(found: socket.socket) -> str:
    """The address that clients use."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Starlette, found: socket.socket, begun: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT comes, and every request that was taken is answered or `drain_seconds` are over; a second
    signal ends it at once.

    Args:
        app: what `make_app` gives.
        found: what `listen` gives.
        begun: called once requests are taken.
    """
    make_server(app, begun).run([found])


def make_server(app: Starlette, begun: Callable[[], None]) -> uvicorn.Server:
    """What `run` runs."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FAREWELL_S,
        server_header=False,
        ws="none",
    )
    return _Server(config, app.state.server, begun)


class _Server(uvicorn.Server):
    """One that finishes what it began, and says no to what is new, before it stops."""

    def __init__(self, config: uvicorn.Config, state: State, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._state = state
        self._begun = begun
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._begun()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # of those who read nothing
            connection.transport.abort()
        await asyncio.sleep(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None:  # nothing was taken yet
            self.should_exit = True
            return
        if self._state.draining:
            self.should_exit = self.force_exit = True
            return
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._state.drain()
        self._draining = asyncio.create_task(self._stop_when_done())

    async def _stop_when_done(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._state.options.drain_seconds):
                while self._state.active:
                    await asyncio.sleep(_LOOK_S)
        self._state.cancel()
        self.should_exit = True


class JsonLines(logging.Formatter):
    """A line of JSON for each record; those of requests are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        head = msgspec.json.encode({"time": when, "level": record.levelname.lower()}).decode()[:-1]
        if record.name == "foveate.serve" and message.startswith("{"):
            return f"{head},{message[1:]}"
        facts = {"message": message}
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return f"{head},{msgspec.json.encode(facts).decode()[1:]}"

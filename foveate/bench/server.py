"""The server under load: which it is, what it serves, how much memory it takes; one of a bundle is started as a child."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.bench.client import Address, ServerError, decoded, get
from foveate.bench.results import ServerMemory
from foveate.engines import BackendError, OptionError
from foveate.engines.errors import shorten

SERVE = (sys.executable, "-c", "from foveate.cli import main; main(prog_name='foveate')", "serve")
_START_S, _STOP_S = 600.0, 15.0
_OURS = "foveate"
"""Who owns the models of foveate's servers, as they say."""
_URL = re.compile(r"https?://[\w.\-\[\]:]+:\d+")
_RESIDENT = re.compile(rb"^process_resident_memory_bytes(?:\{[^}]*\})?\s+([0-9.eE+]+)", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """What a server says about itself.

    Attributes:
        name: and version, as far as it says them.
        models: that it serves.
        ours: whether it is foveate's, which takes `keep`.
    """

    name: str
    models: tuple[str, ...]
    ours: bool

    def choose(self, model: str | None) -> str:
        """The model to ask: the one that was named, or the only one.

        Raises:
            OptionError: it serves no such model, or several and none was named.
        """
        listed = shorten(", ".join(self.models), 400)
        if model is not None:
            if self.models and model not in self.models:
                raise OptionError(
                    f"the server has no model '{shorten(model)}', it has {listed}. Name that.", options=("model",)
                )
            return model
        if len(self.models) != 1:
            fact = f"the server has several models: {listed}" if self.models else "the server does not say which models it has"
            raise OptionError(f"{fact}. Name the one to ask.", options=("model",))
        return self.models[0]


async def look_at(address: Address, url: str) -> Server:
    """Asks a server for its version and its models.

    Raises:
        OptionError: it can't be reached, or refuses the key.
    """
    try:
        status, models = await get(address, "/v1/models")
        version = await get(address, "/version")
    except ServerError as error:
        raise OptionError(
            f"{url} does not answer ({error}). Start the server, or check its address.", options=("target",)
        ) from error
    if status in (401, 403):
        raise OptionError(f"{url} refuses the request (HTTP {status}). Give its key.", options=("api_key_file",))
    listed = _object(status, models).get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    owners = {str(entry["owned_by"]) for entry in entries if entry.get("owned_by")}
    number = _object(*version).get("version")
    name = " ".join([*sorted(owners), *([str(number)] if number else [])]) or "a server that does not name itself"
    names = tuple(entry["id"] for entry in entries if isinstance(entry.get("id"), str))
    return Server(shorten(name), names, owners == {_OURS})


def _object(status: int, content: bytes) -> dict[str, Any]:
    """The fields of an answer; none where it is no object."""
    found = decoded(content) if status == 200 else None
    return found if isinstance(found, dict) else {}


@contextmanager
def serve_bundle(bundle: Path, words: Sequence[str], log_file: Path | None = None) -> Iterator[tuple[str, int]]:
    """The serve command on a bundle in a process of its own, on a free port, until the end of the block.

    Args:
        bundle: its folder.
        words: further words of the command.
        log_file: where to leave what it prints; None leaves it nowhere.

    Yields:
        URL and process id.

    Raises:
        BackendError: it ended before it served.
    """
    with tempfile.TemporaryFile() if log_file is None else log_file.open("w+b") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        # A session of its own: a Ctrl-C reaches it through us alone, once.
        child = subprocess.Popen(
            [*SERVE, str(bundle), "--port", "0", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            yield _await_address(child, log.fileno()), child.pid
        finally:
            _stop(child)


def _await_address(child: subprocess.Popen[bytes], log: int) -> str:
    """What the child prints once it listens."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        ended = child.poll() is not None
        said = os.pread(log, 1 << 20, 0).decode(errors="replace")
        if found := _URL.search(said):
            return found[0]
        if ended:
            last = (said.strip().splitlines() or ["it said nothing"])[-1].removeprefix("Error: ")
            raise BackendError(f"the bundle's server ended with code {child.returncode}: {shorten(last, 600)}")
        time.sleep(0.05)
    raise BackendError(
        f"the bundle's server did not listen within {_START_S:g} s. Serve the bundle by hand and look at what it prints."
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # whatever is left of its session
        child.wait()


def tree_memory(root: int) -> ServerMemory | None:
    """Of a process and its descendants; None where the platform does not say."""
    tree = [root]
    for process in tree:  # grows as it is walked
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):
                tree += map(int, children.read_text().split())
    found = [memory for process in tree if (memory := _status_kib(process))]
    if not found:
        return None
    resident, private = (sum(sum(memory.get(name, 0) for name in names) for memory in found) for names in _MEMORY)
    return ServerMemory(1024 * resident, 1024 * private, "processes")


_MEMORY = (("VmRSS",), ("RssAnon", "VmSwap"))


def _status_kib(process: int) -> dict[str, int]:
    found = {}
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "RssAnon", "VmSwap"):
                found[name] = int(value.split()[0])
    return found


async def scraped_memory(address: Address) -> ServerMemory | None:
    """What the server's `/metrics` says; None where it says nothing."""
    with suppress(ServerError):
        status, content = await get(address, "/metrics")
        if status == 200 and (found := _RESIDENT.search(content)):
            return ServerMemory(round(float(found[1])), None, "/metrics")
    return None


def larger(first: ServerMemory | None, other: ServerMemory | None) -> ServerMemory | None:
    """The peak of two moments, each figure by itself."""
    if first is None or other is None:
        return first or other
    private = (first.private_bytes or 0, other.private_bytes or 0)
    known = first.private_bytes is not None and other.private_bytes is not None
    return ServerMemory(max(first.resident_bytes, other.resident_bytes), max(private) if known else None, other.source)

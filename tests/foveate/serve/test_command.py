"""`foveate serve` as a process of its own: it says where it listens, answers, drains at SIGTERM and exits with 0."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner

from foveate.cli import main
from foveate.cli.serve import name_bundles
from foveate.engines import OptionError
from tests.foveate.serve.conftest import ASK, CHAT, TEXT, wait_until


@contextmanager
def started(bundle: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server and its address."""
    call = [
        sys.executable,
        "-c",
        "from foveate.cli import main; main(prog_name='foveate')",
        "serve",
        str(bundle),
        "--port",
        "0",
    ]
    with subprocess.Popen([*call, "--json", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            text = "".join(iter(process.stdout.readline, "}\n")) + "}"
            document = json.loads(text)
            assert (document["schema"], document["models"]) == ("foveate.serve.1", ["tiny"])
            yield process, document["url"]
        finally:
            process.kill()


def test_a_server_of_its_own(reference_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# mine\nsecret\n")
    with started(reference_bundle, "--slots", "2", "--slot-tokens", "1024", "--api-key-file", str(keys)) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        headers = {"authorization": "Bearer secret"}
        with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
            assert client.post(CHAT, json={"messages": ASK, "max_tokens": 4}, headers={"authorization": ""}).status_code == 401
            done = client.post(CHAT, json={"messages": ASK, "max_tokens": 4, "foveate": {"keep": 0.25}}).json()
            assert done["foveate"]["kept_tokens"] < done["foveate"]["visual_tokens"]
            found: list[httpx2.Response] = []
            body = {"messages": TEXT, "max_tokens": 300, "ignore_eos": True}
            running = threading.Thread(target=lambda: found.append(client.post(CHAT, json=body)))
            running.start()
            wait_until(lambda: 'num_requests_running{model_name="tiny"} 1.0' in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            running.join()
        assert found[0].json()["usage"]["completion_tokens"] == 300
        assert process.wait(30) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert {"time", "id", "method", "path", "status", "ms"} <= lines[0].keys()
    assert "secret" not in json.dumps(lines)


def test_a_port_that_is_taken(reference_bundle: Path) -> None:
    with started(reference_bundle) as (_, url):
        port = url.rpartition(":")[2]
        refused = CliRunner().invoke(main, ["serve", str(reference_bundle), "--port", port, "--slots", "1"])
    assert refused.exit_code == 2
    assert "can't be listened at: Address already in use" in refused.stderr
    assert "(--host, --port)" in refused.stderr


def test_bundles_have_names() -> None:
    assert name_bundles(("a/x.bundle", "y", "small=b/x.bundle")) == {
        "x": Path("a/x.bundle"),
        "y": Path("y"),
        "small": Path("b/x.bundle"),
    }
    for given in (("x.bundle", "a/x.bundle"), ("=x.bundle",), ("x=",)):
        with pytest.raises(OptionError):
            name_bundles(given)

"""`foveate bench`: a URL or a bundle, its table, page, JSON and CSV, and what ends it at once."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import foveate.bench.server
from foveate.bench import Benchmark
from foveate.bench.charts import charts_of
from foveate.bench.report import make_page
from foveate.bench.results import summarise
from foveate.bench.server import larger, serve_bundle, tree_memory
from foveate.cli.bench import _table
from foveate.engines import BackendError
from tests.foveate.bench.standin import StandIn, running
from tests.foveate.conftest import ROOT, SCENES, Run
from tests.foveate.test_cli import assert_one_clear_line

SMALL = ("--image-size", "32x24", "--warm-up", "1", "--requests", "3")
STANDIN = (sys.executable, "-m", "tests.foveate.bench.standin")


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with running(StandIn(first_s=(0.01, 0.02), gap_s=0.005, usage_tokens=4)) as server:
        yield server


@pytest.fixture(scope="module")
def folder(run: Run, server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of both kinds of load at two keep ratios, with limits."""
    folder = tmp_path_factory.mktemp("bench")
    loads = ("--concurrency", "1,2", "--rate", "50", "--keep", "1,0.25", "--ttft-slo-ms", 2000, "--itl-slo-ms", 1000)
    files = ("--json", folder / "r.json", "-o", folder / "r.html", "--csv", folder / "r.csv")
    result = run("bench", server.url, *SMALL, *loads, *files)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def benchmark(folder: Path) -> Benchmark:
    return msgspec.json.decode((folder / "r.json").read_bytes(), type=Benchmark, strict=True)


def test_every_load_meets_every_keep_ratio(benchmark: Benchmark) -> None:
    keys = [(point.kind, point.value, point.keep) for point in benchmark.points]
    assert keys == [(kind, value, keep) for kind, value in (("closed", 1), ("closed", 2), ("open", 50)) for keep in (1, 0.25)]
    assert all(point.figures.answered == 3 and point.figures.good_share == 1 for point in benchmark.points)
    assert (benchmark.setting.server, benchmark.setting.model) == ("foveate 0.0", "tiny")


class Page(HTMLParser):
    """Counts elements, and notes what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")]


def test_the_page_needs_no_other_file(folder: Path, benchmark: Benchmark) -> None:
    text = (folder / "r.html").read_text()
    page = Page()
    page.feed(text)
    assert page.elements.count("svg") == 2 * len(charts_of(benchmark)) == 12
    assert page.loads == []
    for part in ("Throughput", "Time to first token", "Longest over median gap", "first token within 2000 ms", "16 of 64"):
        assert part in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).lower()


def test_a_page_of_failures_alone(benchmark: Benchmark) -> None:
    point = benchmark.points[0]
    sent = [msgspec.structs.replace(one, error="HTTP 429", ttft_ms=None, gaps_ms=[]) for one in point.requests]
    failed = msgspec.structs.replace(point, requests=sent, figures=summarise(sent, 1.0))
    assert "HTTP 429: 3" in make_page(msgspec.structs.replace(benchmark, points=[failed])).decode()


def test_the_table_fits_a_small_terminal(benchmark: Benchmark) -> None:
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(_table(benchmark))
    lines = console.export_text().splitlines()
    assert len(lines) <= 3 + len(benchmark.points)
    assert max(map(len, lines)) <= 80
    console.file.close()


def test_a_line_for_each_point(folder: Path, benchmark: Benchmark) -> None:
    first, *others = csv.DictReader((folder / "r.csv").read_text().splitlines())
    assert len(others) == 5
    assert (first["kind"], first["value"], first["answered"], first["tokens_by"]) == ("closed", "1", "3", "usage")
    assert float(first["ttft_ms_p50"]) >= 10
    assert float(first["output_tokens_per_second"]) == pytest.approx(12 / float(first["seconds"]), rel=1e-3)


def test_a_bundle_is_served_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(foveate.bench.server, "SERVE", STANDIN)
    monkeypatch.chdir(ROOT)
    bundle, file = tmp_path / "x.bundle", tmp_path / "bench.json"
    result = run("bench", bundle, *SMALL, "--concurrency", "1", "--threads", "1", "--serve", "--slots 2", "--json", file)
    assert result.exit_code == 0, result.stderr
    found = msgspec.json.decode(file.read_bytes(), type=Benchmark)
    assert found.setting.target == str(bundle)
    (point,) = found.points
    assert point.memory is not None
    assert point.memory.source == "processes"
    assert point.memory.resident_bytes > (point.memory.private_bytes or 0) > 2**20


def test_the_session_goes_to_the_child() -> None:
    from foveate.cli.bench import _session_words, bench_command

    words = ["--backend", "openvino", "--engines", "e", "--threads", "2"]
    context = bench_command.make_context("bench", ["x.bundle", "--seed", "3", *words])
    assert _session_words(context) == words
    switch = bench_command.make_context("bench", ["x.bundle", "--backend", "tensorrt-rtx", "--no-cuda-graphs"])
    assert _session_words(switch) == ["--backend", "tensorrt-rtx", "--no-cuda-graphs"]
    options = bench_command.make_context("bench", ["x.bundle", "--provider-option", "a=1", "--provider-option", "b=2"])
    assert _session_words(options) == ["--provider-option", "a=1", "--provider-option", "b=2"]


def test_a_child_that_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.exit('Error: there is no such thing. Do another.')"
    monkeypatch.setattr(foveate.bench.server, "SERVE", (sys.executable, "-c", code))
    with (
        pytest.raises(BackendError, match=r"ended with code 1: there is no such thing\. Do another\."),
        serve_bundle(Path("x"), []),
    ):
        pass


def test_the_memory_of_a_tree() -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytes(60_000_000); print(1, flush=True); input()'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory = tree_memory(process.pid)
        process.communicate(b"\n")
    assert memory is not None
    assert memory.resident_bytes > 10 * 2**20
    both = larger(memory, msgspec.structs.replace(memory, resident_bytes=1, private_bytes=2**40))
    assert both == msgspec.structs.replace(memory, private_bytes=2**40)
    assert tree_memory(2**22 + 1) is None


def children_of(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running(number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop the server too."""
    code = f"import foveate.bench.server as s; s.SERVE = {STANDIN!r}; from foveate.cli import main; main()"
    words = ["bench", "x.bundle", "--seconds", "60", "--image-size", "9x9"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + 60
        while not (children := children_of(process.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1.5)  # the load has begun
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert children
    assert process.returncode == (1 if number == signal.SIGINT else 143), said
    assert b"Traceback" not in said
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_what_is_wrong_is_said_at_once(run: Run, tmp_path: Path, server: StandIn) -> None:
    assert_one_clear_line(run("bench", "http://127.0.0.1:9"), "http://127.0.0.1:9 does not answer", "Start the server")
    assert_one_clear_line(run("bench", server.url, "--model", "other"), "no model 'other', it has tiny", "(--model)")
    assert_one_clear_line(run("bench", server.url, "--concurrency", ""), "neither a rate nor", "(--rate, --concurrency)")
    assert_one_clear_line(run("bench", server.url, "--data", tmp_path), "questions.jsonl")
    assert_one_clear_line(run("bench", server.url, "--api-key-file", tmp_path / "no"), "--api-key-file is")
    empty = tmp_path / "key"
    empty.write_text("\n")
    assert_one_clear_line(run("bench", server.url, "--api-key-file", empty), "holds no key")
    assert_one_clear_line(run("bench", SCENES, "--serve", "'"), "--serve is")


def test_a_server_that_refuses_all(run: Run) -> None:
    with running(StandIn(models=())) as server:
        refused = run("bench", server.url, "--model", "x", *SMALL)
    assert_one_clear_line(refused, "answers no request of the warm-up: HTTP 404, there is no such model")


def test_json_alone_on_standard_output(run: Run, server: StandIn) -> None:
    result = run("bench", server.url, *SMALL, "--concurrency", "1", "--json")
    assert json.loads(result.stdout)["schema"] == "foveate.bench.1"


def test_an_option_of_a_session_needs_a_bundle_and_its_backend(run: Run) -> None:
    options = ("--backend", "openvino", "--engines", "e")
    assert_one_clear_line(run("bench", "http://x", *options), "--backend has no effect: the server runs already")
    assert_one_clear_line(run("bench", "x.bundle", *options), "--engines has no effect: backend 'openvino' does not look at it")

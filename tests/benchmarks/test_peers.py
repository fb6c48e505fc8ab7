"""Benchmarks beside other tools: what is computed from measurements, and going on where a run was ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers.peers import PEERS, cases
from benchmarks.peers.results import Results, draw, lines, settings_table, table
from benchmarks.peers.worker import HEIGHT, VISUAL_TOKENS, WIDTH, Trace, figures, peak_rss_bytes, picture
from benchmarks.peers.workplace import REQUIREMENTS, Workplace, commands


def report(peer: str, seconds: float) -> dict[str, Any]:
    """What a worker prints when everything took `seconds`."""
    vision = None if PEERS[peer].source == "text" else seconds
    ttft = None if vision is None else 2 * seconds
    run = {"prompt_tokens": 910, "vision_s": vision, "prefill_s": seconds, "ttft_s": ttft, "decode_tokens_per_s": 1 / seconds}
    return {
        "peak_rss_bytes": 2**30,
        "versions": {"tool": "1.2"},
        "settings": {"cache": False},
        "runs": [{"keep": keep, **run} for keep in PEERS[peer].keeps],
    }


def record(peer: str, precision: str, number: int, seconds: float) -> dict[str, Any]:
    """The same with what the driver adds."""
    return {"peer": peer, "precision": precision, "round": number, "date": "2030-01-01", **report(peer, seconds)}


class FakeWorkplace:
    """Runs nothing; `calls` has what was asked of it, and call number `fails_at` fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fails_at = fails_at

    def measure(self, name: str, precision: str, threads: int, new_tokens: int) -> dict[str, Any]:
        self.calls.append((name, precision))
        if len(self.calls) == self.fails_at:
            raise RuntimeError("out of memory")
        return report(name, 1.0)


def test_figures_of_a_trace() -> None:
    found = figures(Trace(910, started=1.0, seen=3.0, tokens=[4.0, 4.5, 5.0]), new_tokens=3)
    assert found == {"prompt_tokens": 910, "vision_s": 2.0, "prefill_s": 1.0, "ttft_s": 3.0, "decode_tokens_per_s": 2.0}


def test_figures_without_vision() -> None:
    found = figures(Trace(910, started=1.0, seen=None, tokens=[4.0, 4.5]), new_tokens=2)
    assert (found["vision_s"], found["prefill_s"], found["ttft_s"]) == (None, 3.0, None)


def test_an_answer_that_ended_early_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens were generated, expected 3"):
        figures(Trace(910, 1.0, 3.0, [4.0, 4.5]), new_tokens=3)


def test_the_picture_has_its_tokens() -> None:
    assert picture().shape == (HEIGHT, WIDTH, 3)
    assert WIDTH % 28 == HEIGHT % 28 == 0
    assert VISUAL_TOKENS == 864


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_rss() -> None:
    assert 10 * 2**20 < peak_rss_bytes() < 2**40


def test_a_worker_needs_numpy_alone() -> None:
    unavailable = "foveate", "click", "torch", "transformers", "tokenizers"
    program = f"import sys; sys.modules.update(dict.fromkeys({unavailable})); import benchmarks.peers.worker"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_rounds_are_interleaved_and_resumed(tmp_path: Path) -> None:
    path, wanted = tmp_path / "new" / "results.json", cases(PEERS)
    first, second = FakeWorkplace(fails_at=len(wanted) + 2), FakeWorkplace()
    with pytest.raises(RuntimeError, match="out of memory"):
        peers.measure(cast(Workplace, first), Results(path), wanted, 2, 1, 4)
    assert first.calls == [*wanted, *wanted[:2]]
    peers.measure(cast(Workplace, second), Results(path), wanted, 2, 1, 4)
    assert second.calls == wanted[1:]
    assert [record["round"] for record in Results(path).records] == [0] * len(wanted) + [1] * len(wanted)


def test_medians_in_the_table() -> None:
    records = [record("openvino", "int8", number, seconds) for number, seconds in enumerate((4.0, 1.0, 2.0))]
    rows = list(table(list(lines(records))))
    assert len(rows) == 2 + len(PEERS["openvino"].keeps)
    assert rows[2] == "| OpenVINO GenAI | int8 | 1 | 910 | 2.00 | 2.00 | 4.00 (2.00 - 8.00) | 0.5 | 1.0 |"
    assert len({row.count("|") for row in rows}) == 1


def test_a_peer_without_vision_has_no_ttft() -> None:
    (line,) = lines([record("ort_genai", "int4", 0, 2.0)])
    assert (line.vision_s, line.ttft_s) == (None, None)
    assert "| - | 2.00 | - | 0.5 |" in list(table([line]))[-1]


def test_settings() -> None:
    rows = list(settings_table([record("foveate", "int8", 0, 1.0), record("foveate", "int4", 0, 1.0)]))
    assert rows[2:] == ["| foveate | tool 1.2 | cache False |"]


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text())
    monkeypatch.setattr(peers, "PAGE", page)
    records = [record(name, precision, 0, 1.0) for name, precision in cases(PEERS)]
    peers.write_page(list(lines(records)), records, Workplace(tmp_path, None), 2, 32)
    text = page.read_text()
    assert "Measured 2030-01-01" in text
    assert "true shape; rounds: 1; new tokens: 32." in text
    assert str(tmp_path) not in text
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_the_chart_has_a_row_for_each_line(tmp_path: Path) -> None:
    measured = list(lines([record(name, precision, 0, 1.0) for name, precision in cases(PEERS)]))
    assert len({line.name for line in measured}) == len(measured)
    draw(measured, tmp_path / "chart.png")


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.own_environment])
def test_requirements_are_pinned(name: str) -> None:
    """All of them, since they are installed without what they ask for; torch goes first and alone."""
    pins = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    assert all("==" in pin for pin in pins)
    assert set(PEERS[name].packages) - {"torch"} <= {pin.partition("==")[0] for pin in pins}


def test_commands_name_no_folder() -> None:
    assert commands(["openvino", "transformers"]) == [
        "optimum-cli export openvino --model CHECKPOINT --task image-text-to-text --weight-format PRECISION MODEL"
    ]


def test_cases_of_some_precisions() -> None:
    assert cases(["foveate", "transformers"], ["int4", "bf16"]) == [("foveate", "int4"), ("transformers", "bf16")]


@pytest.mark.parametrize("name", PEERS)
def test_each_peer_has_a_worker(name: str) -> None:
    assert (Path(peers.__file__).parent / f"{PEERS[name].worker or name}_worker.py").is_file()

"""The soak of `benchmarks.soak`, short."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from benchmarks.soak import BLOCK, WARM, WEIGHTS, Block, Choice, Known, compare, sending, slope, soak


def test_a_few_requests(reference_bundle: Path, tmp_path: Path) -> None:
    found = asyncio.run(soak(reference_bundle, tmp_path, 60, 8, ["--threads", "1"]))
    assert found.wrong == []
    assert found.outcomes["good: 200"] > 10


@pytest.mark.slow
def test_a_short_soak(reference_bundle: Path, tmp_path: Path) -> None:
    found = asyncio.run(soak(reference_bundle, tmp_path, 2 * BLOCK, 16, ["--threads", "1"]))
    assert found.wrong == []
    assert {outcome.partition(":")[0] for outcome in found.outcomes} == {*WEIGHTS}
    assert "traceback" not in (tmp_path / "server.log").read_text()
    again = asyncio.run(soak(reference_bundle, tmp_path, 2 * BLOCK, 16, []))
    assert again == found  # all of it is done already
    assert len((tmp_path / "soak.jsonl").read_bytes().splitlines()) == 2


def test_a_number_makes_the_same_request_again() -> None:
    known = [Known("/v1/completions", {"prompt": "x"}, ["y"], [0], [[]])]
    sent = [sending(number, known, "127.0.0.1:1") for number in range(100)]
    assert sent == [sending(number, known, "127.0.0.1:1") for number in range(100)]
    assert {one.kind for one in sent} == {*WEIGHTS}


def test_what_differs_is_said() -> None:
    known = Known("/v1/completions", {}, ["ab"], [4], [[-0.5, -1.0]])
    assert compare(known, [Choice("ab", 4, (-0.5, -1.0))]) == ""
    assert "alone it is ['ab']" in compare(known, [Choice("ac", 4, (-0.5, -1.0))])
    assert "visual tokens" in compare(known, [Choice("ab", 5, (-0.5, -1.0))])
    assert "logprobs" in compare(known, [Choice("ab", 4, (-0.5, -1.01))])
    assert "logprobs" in compare(known, [Choice("ab", 4, (-0.5,))])


def blocks(levels: list[float], server: int = 0) -> list[Block]:
    return [Block(server, 0, WARM, {}, [], level, 1.0) for level in levels]


def test_slope() -> None:
    assert slope(blocks([900.0, 10.0, 11.0, 12.0])) == (1.0, 0.0)
    assert slope(blocks([0.0, 5.0, 5.0, 5.0]) + blocks([0.0, 80.0, 80.0, 80.0], server=1)) == (0.0, 0.0)
    assert slope(blocks([0.0, 5.0])) is None
    found = slope(blocks([0.0, 5.0, 9.0, 5.0, 9.0, 5.0]))
    assert found is not None
    assert abs(found[0]) < 2 * found[1]


def test_a_block_is_a_line() -> None:
    block = blocks([1.0])[0]
    assert msgspec.json.decode(msgspec.json.encode(block), type=Block) == block

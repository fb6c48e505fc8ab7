"""The stages of a request: one list, from which everything that names stages follows."""

from __future__ import annotations

import subprocess
import sys
from time import sleep

import pytest

from foveate.runtime import Timings, stages
from foveate.runtime.stages import ANSWERING, ENCODING, FIRST_TOKEN, STAGES, Stopwatch
from tests.foveate.conftest import ROOT

ADDED = """
import sys
from types import ModuleType

(path,) = sys.argv[1:]
text = open(path).read()
entry = '    peek_ms: float = _stage("a small picture first", "#123abc")\\n'
place = text.index("    glance_ms: float")
module = sys.modules["foveate.runtime.stages"] = ModuleType("foveate.runtime.stages")
exec(text[:place] + entry + text[place:], module.__dict__)

import msgspec
from benchmarks.documents import lines
from foveate.cli.documents import AnswerFacts
from foveate.cli.demo import _figures_table
from foveate.cli.generate import figures
from foveate.cli.profile import _table
from foveate.demo import KEEPS, Outcome
from foveate.profile.charts import stages_chart
from foveate.profile.report import _tables, make_csv
from foveate.runtime import Answer, Timings
from foveate.runtime.select import keep_everything
from foveate.runtime.stages import FIRST_TOKEN, Stopwatch
from foveate.samples import Sample
from tests.foveate.test_profile import invented

stopwatch = Stopwatch()
for stage in FIRST_TOKEN:
    with stopwatch(stage.name):
        pass
timings = Timings(**{**stopwatch.stage_ms, "peek_ms": 7.5}, decode_ms=(1.0,))
assert timings.ttft_ms > 7.5
answer = Answer("cat", (1, 2), "eos", keep_everything(160, ""), (), 200, timings, 4096)
facts = msgspec.convert(answer.to_dict(), AnswerFacts)
assert facts.timings.peek_ms == 7.5
assert list(answer.to_dict()["timings"])[:4] == ["queue_ms", "preprocess_ms", "peek_ms", "glance_ms"]
assert "peek 7.5" in figures(answer)
assert "| `peek_ms` | number | a small picture first |" in lines()
outcome = Outcome(Sample(question="What?", answer="cat", image="a.png"), dict.fromkeys(KEEPS, answer), None)
assert _figures_table([outcome]).titles[3:6] == ("prepare ms", "peek ms", "vision ms")
profile = invented({1: 1.0}, {1: 1.0}, 20, 100)
assert profile.whole.ttft.median == len(FIRST_TOKEN) == 9
assert make_csv(profile).startswith(b"keep,kept_tokens,prompt_tokens,queue_ms,preprocess_ms,peek_ms,glance_ms,vision_ms,")
assert _table(profile).titles[2:5] == ("prepare ms", "peek ms", "vision ms")
chart = stages_chart(profile)
assert "<!-- peek -->" in chart and "#123abc" in chart
assert "peek" in next(_tables(profile)).columns
"""


def test_an_added_stage_is_everywhere() -> None:
    command = [sys.executable, "-c", ADDED, str(stages.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_list() -> None:
    names = "queue preprocess glance vision score select embed prefill decode"
    assert [stage.name for stage in STAGES] == names.split()
    assert (*ENCODING, *ANSWERING) == FIRST_TOKEN == STAGES[:-1]
    assert all(stage.does and stage.colour for stage in FIRST_TOKEN)


def test_a_stage_that_runs_twice_has_the_sum() -> None:
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch("score"):
            sleep(0.01)
    assert stopwatch.stage_ms["score_ms"] >= 20
    assert Timings(**stopwatch.stage_ms, decode_ms=()).score_ms == stopwatch.stage_ms["score_ms"]


def test_a_stage_that_is_not_on_the_list_is_refused() -> None:
    with pytest.raises(KeyError, match="visoin"), Stopwatch()("visoin"):
        pass

"""Budgets in milliseconds: what the measured points say is what is kept."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import (
    Bundle,
    BundleError,
    Environment,
    LatencyEntry,
    LatencyPoint,
    MachineError,
    RequestError,
    SessionOptions,
    describe_environment,
    make_placement,
    save_latencies,
)
from foveate.runtime import Budget, Request, load
from foveate.runtime.latency import LatencyModel, Plan, Sizes, Unmeasured, find_model, plan

HERE = Environment("a CPU", 2, "onnxruntime 1", {})
SIZES = Sizes(visual_tokens=100, text_tokens=20, spent_ms=50.0, needs_scores=True)

points = st.dictionaries(st.integers(1, 2000), st.floats(0, 1e4), min_size=1, max_size=6)


def entry(
    score: dict[int, float],
    prefill: dict[int, float],
    environment: Environment = HERE,
    vision: dict[int, float] | None = None,
) -> LatencyEntry:
    lines = [tuple(LatencyPoint(tokens, ms) for tokens, ms in line.items()) for line in (vision or {1: 0.0}, score, prefill)]
    return LatencyEntry(environment, *lines)


def model(score: float = 5.0) -> LatencyModel:
    """A millisecond a token of the prompt, and a scorer that takes as long for any number."""
    return LatencyModel(entry({1: score, 1000: score}, {1: 1.0, 1000: 1000.0}))


@given(points, st.integers(0, 3000), st.integers(0, 3000))
def test_more_tokens_never_take_less_time(prefill: dict[int, float], one: int, other: int) -> None:
    found = LatencyModel(entry({1: 0.0}, prefill))
    assert found.prefill_ms(min(one, other)) <= found.prefill_ms(max(one, other))


@given(points, st.integers(0, 500), st.integers(0, 2000), st.floats(0, 2e4))
def test_most_tokens_are_the_last_that_fit(prefill: dict[int, float], text: int, visual: int, ms: float) -> None:
    found = LatencyModel(entry({1: 0.0}, prefill))
    most = found.most_tokens(text, visual, ms)
    assert most == -1 or found.prefill_ms(text + most) <= ms
    assert most == visual or found.prefill_ms(text + most + 1) > ms


def test_one_point_says_that_time_is_proportional() -> None:
    found = LatencyModel(entry({100: 3.0}, {100: 10.0}))
    assert [found.prefill_ms(tokens) for tokens in (0, 50, 100, 300)] == [0, 5, 10, 30]


def test_between_and_beyond_the_points_time_is_a_line() -> None:
    found = LatencyModel(entry({100: 3.0}, {100: 10.0, 200: 30.0, 300: 20.0}))
    assert found.prefill_ms(150) == pytest.approx(20)
    assert found.prefill_ms(400) == pytest.approx(30)  # a lower median at more tokens is noise
    assert found.prefill_ms(1) == pytest.approx(10)
    assert found.score_ms(200) == pytest.approx(6)  # one point: as the tokens


@pytest.mark.parametrize(
    ("ttft_ms", "expected"),
    [
        (175.0, Plan(Budget(), "all tokens fit into 175 ms", 170.0)),
        (170.0, Plan(Budget(), "all tokens fit into 170 ms", 170.0)),
        (169.0, Plan(Budget(tokens=94), "", 169.0)),
        (76.5, Plan(Budget(tokens=1), "", 76.0)),
    ],
)
def test_milliseconds_become_tokens(ttft_ms: float, expected: Plan) -> None:
    found = plan(Budget(ttft_ms=ttft_ms), SIZES, model())
    assert (found.budget, found.reason) == (expected.budget, expected.reason)
    assert found.predicted_ttft_ms == pytest.approx(expected.predicted_ttft_ms)


def test_a_selector_without_scores_has_more_time() -> None:
    assert plan(Budget(ttft_ms=165), replace(SIZES, needs_scores=False), model()).budget == Budget(tokens=95)


def test_too_little_time_is_an_error() -> None:
    with pytest.raises(RequestError, match="begins after about 76 ms, 50 ms of them before scoring"):
        plan(Budget(ttft_ms=75), SIZES, model())


def test_without_a_measurement_milliseconds_are_an_error() -> None:
    with pytest.raises(RequestError, match="foveate profile BUNDLE --save"):
        plan(Budget(ttft_ms=500), SIZES, None)


@pytest.mark.parametrize("budget", [Budget(ratio=0.5), Budget(tokens=50), Budget(mass=0.9)])
def test_what_was_measured_changes_no_budget_in_tokens(budget: Budget) -> None:
    for found in (model(score=1e6), Unmeasured(), None):
        assert plan(budget, SIZES, found) == Plan(budget)


@pytest.mark.parametrize("limit", [{"ratio": 0.5}, {"tokens": 50}])
def test_scoring_that_does_not_pay_is_left_out_on_demand(limit: dict[str, Any]) -> None:
    budget = Budget(**limit, only_if_faster=True)
    assert plan(budget, SIZES, model(score=49.0)) == Plan(Budget(**limit))
    found = plan(budget, SIZES, model(score=50.0))
    assert found.budget == Budget()
    assert found.reason == "scoring takes about 50.0 ms and would save 50.0 ms of prefill"
    assert plan(budget, replace(SIZES, needs_scores=False), None) == Plan(Budget(**limit))
    assert plan(budget, replace(SIZES, visual_tokens=0), None) == Plan(Budget(**limit))


def test_what_is_faster_is_not_known_without_a_measurement() -> None:
    with pytest.raises(RequestError, match=r"prunes only if that is faster, and this bundle has no latencies .* --save"):
        plan(Budget(ratio=0.5, only_if_faster=True), SIZES, None)
    error = MachineError("latency.json can't be read. Delete it.")
    with pytest.raises(MachineError, match=r"the budget is 5 ms, and latency\.json can't be read"):
        plan(Budget(ttft_ms=5), SIZES, Unmeasured(error))


@pytest.mark.parametrize("limits", [{}, {"mass": 0.5}, {"ttft_ms": 5.0}])
def test_only_if_faster_goes_with_a_number_of_tokens(limits: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="expected True beside ratio or tokens"):
        Budget(**limits, only_if_faster=True)


@pytest.mark.parametrize("ttft_ms", [0, -1, float("inf"), float("nan"), True, "300"])
def test_milliseconds_that_are_none(ttft_ms: object) -> None:
    with pytest.raises(RequestError, match="expected a number above 0"):
        Budget(ttft_ms=ttft_ms)  # type: ignore[arg-type]


def test_another_environment_or_bundle_has_no_model(reference_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(reference_bundle, verify=False)
    save_latencies(tmp_path, bundle.sha256, entry({1: 1.0}, {1: 1.0}))
    assert isinstance(find_model(bundle, tmp_path, HERE), LatencyModel)
    assert find_model(bundle, tmp_path, msgspec.structs.replace(HERE, options={"threads": "1"})) == Unmeasured()
    other = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, foveate_version="another"))
    assert find_model(other, tmp_path, HERE) == Unmeasured()
    assert find_model(bundle, None, HERE) == Unmeasured()


def test_options_that_change_nothing_are_the_same_environment(reference_bundle: Path) -> None:
    with closing(load(reference_bundle)) as pipe:
        plain = describe_environment(make_placement(), pipe.memory)

        def described(**options: Any) -> Environment:
            return describe_environment(make_placement("onnxruntime", SessionOptions(**options), "openvino"), pipe.memory)

        assert described() == described(engines=Path("x"))
        assert described().vision != described(precision="bf16").vision != plain.vision == ""
        assert described().options == described(precision="bf16").options == plain.options
        assert described(threads=1).options == {"threads": "1"}
        assert plain.device
        assert plain.backend.startswith("onnxruntime 1.")


@pytest.fixture
def measured(reference_bundle: Path, tmp_path: Path) -> Path:
    """The reference bundle with latencies: 1 ms a token of the prompt, 5 ms of scoring."""
    bundle = tmp_path / "tiny.bundle"
    shutil.copytree(reference_bundle, bundle)
    with closing(load(bundle)) as pipe:
        environment = describe_environment(make_placement(), pipe.memory)
    latency = entry({1: 5.0, 1000: 5.0}, {1: 1.0, 1000: 1000.0}, environment)
    save_latencies(bundle / "engines", Bundle.open(bundle).sha256, latency)
    return bundle


def test_a_request_in_milliseconds(measured: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 448, 3), dtype=np.uint8)
    with closing(load(measured)) as pipe:
        encoded = pipe.encode(Request.ask("What is this?", image))
        spent = sum(encoded.stage_ms.values())
        text, total = encoded.prepared.num_text_tokens, encoded.prepared.num_visual_tokens
        answer = pipe.generate(Request.ask("What is this?", image, ttft_ms=spent + 5 + text + 40.5), encoded)
        assert len(answer.selection.keep_indices) == 40
        assert answer.predicted_ttft_ms == pytest.approx(spent + 5 + text + 40)
        assert json.loads(json.dumps(answer.to_dict()))["predicted_ttft_ms"] == answer.predicted_ttft_ms
        whole = pipe.generate(Request.ask("What is this?", image, ttft_ms=1e6), encoded)
        assert (len(whole.selection.keep_indices), whole.selection.reason) == (total, "all tokens fit into 1e+06 ms")
        request = Request.ask("What is this?", image, keep_tokens=total - 3)
        few = pipe.generate(request, encoded)
        assert (len(few.selection.keep_indices), few.selection.reason) == (total - 3, "")
        assert few.predicted_ttft_ms is None
        faster = pipe.generate(replace(request, budget=replace(request.budget, only_if_faster=True)), encoded)
        assert len(faster.selection.keep_indices) == total
        assert faster.selection.reason == "scoring takes about 5.0 ms and would save 3.0 ms of prefill"
        with pytest.raises(RequestError, match="Raise it, or use smaller images"):
            pipe.generate(Request.ask("What is this?", image, ttft_ms=1.0), encoded)


def test_a_text_without_images_has_a_prediction_too(measured: Path) -> None:
    with closing(load(measured)) as pipe:
        encoded = pipe.encode(Request.ask("What is this?"))
        answer = pipe.generate(Request.ask("What is this?", ttft_ms=500), encoded)
        assert answer.predicted_ttft_ms == pytest.approx(answer.prompt_tokens + sum(encoded.stage_ms.values()))


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"measured": [], "schema_version": 2}'])
def test_damaged_latencies_stop_only_those_who_need_them(measured: Path, content: bytes) -> None:
    (measured / "engines" / "latency.json").write_bytes(content)
    with closing(load(measured)) as pipe:
        assert pipe.generate(Request.ask("What is this?", max_new_tokens=1)).text is not None
        with pytest.raises(BundleError, match=r"the budget is 500 ms, and .*latency\.json was changed after .* --save"):
            pipe.generate(Request.ask("What is this?", ttft_ms=500))

"""`foveate profile`: every figure is there, consistent, and what is saved plans budgets in milliseconds."""

from __future__ import annotations

import csv
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines import Bundle, Environment, LatencyPoint, read_latencies
from foveate.profile import Profile, ProfilePlan, profile_bundle, write_reports
from foveate.profile.charts import stages_chart
from foveate.profile.report import _tables, break_even_remark, make_page, part_remark, tower_remark
from foveate.profile.results import KeepRun, LoadRun, Setting, SizeRun, Spread, first_token
from foveate.runtime import Timings
from foveate.runtime.stages import FIRST_TOKEN
from tests.foveate.conftest import SCENES, Run
from tests.foveate.test_cli import assert_one_clear_line

STAGES = [stage.key for stage in FIRST_TOKEN]
PLAN = ProfilePlan(keeps=(0.5, 0.25), image_size=(448, 336), new_tokens=3, repeats=2, clients=(1, 2), requests=2)


@pytest.fixture(scope="module")
def steps() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def profile(reference_bundle: Path, steps: list[tuple[int, int]]) -> Profile:
    return profile_bundle(reference_bundle, PLAN, progress=lambda done, total: steps.append((done, total)))


def test_every_keep_ratio_has_every_stage(profile: Profile) -> None:
    assert [run.keep for run in profile.keeps] == [1.0, 0.5, 0.25]
    assert [run.kept_tokens for run in profile.keeps] == [192, 96, 48]
    for run in profile.keeps:
        assert run.prompt_tokens == run.kept_tokens + profile.setting.text_tokens
        assert set(run.stages) == set(STAGES)
        assert all(len(values) == PLAN.repeats for values in run.stages.values())
        assert len(run.decode_ms) == PLAN.repeats * (PLAN.new_tokens - 1)
        assert (run.stage("score_ms") > 0.1) == (run.keep < 1)
        assert run.peak_bytes is not None
        assert profile.loaded_bytes is not None
        assert run.peak_bytes >= profile.loaded_bytes > profile.setting.bundle_bytes


def test_the_cache_holds_prompt_and_answer(profile: Profile, reference_bundle: Path) -> None:
    decoder = Bundle.open(reference_bundle).manifest.decoder
    token_bytes = 2 * 4 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim
    for run in profile.keeps:
        tokens = -(-(run.prompt_tokens + PLAN.new_tokens) // 16) * 16
        assert run.kv_bytes == tokens * token_bytes


def test_clients_at_once(profile: Profile) -> None:
    assert [(run.keep, run.clients, len(run.ttft_ms)) for run in profile.load] == [
        *((1.0, clients, 2 * clients) for clients in (1, 2)),
        *((0.25, clients, 2 * clients) for clients in (1, 2)),
    ]
    assert all(run.tokens == 3 * len(run.ttft_ms) and run.seconds > 0 for run in profile.load)


def test_another_question_does_not_pay_for_the_vision(profile: Profile) -> None:
    assert set(profile.second_question) == {"1", "0.25"}
    assert all(0 < ms < profile.whole.ttft.high for ms in profile.second_question.values())


def test_stages_are_measured_at_several_sizes(profile: Profile) -> None:
    tokens = [point.tokens for point in profile.score]
    assert tokens == sorted(set(tokens))
    assert len(tokens) >= 3
    assert max(tokens) == profile.setting.visual_tokens
    assert {run.prompt_tokens for run in profile.keeps} <= {point.tokens for point in profile.prefill}


def test_the_vision_graph_is_measured_over_pictures_and_parts(profile: Profile) -> None:
    tokens = [point.tokens for point in profile.vision]
    assert tokens == sorted(set(tokens))
    assert {192, 96, 48, 21} < set(tokens)  # all, a half, a quarter, a ninth
    assert {size.visual_tokens for size in profile.sizes} < set(tokens)
    assert all(point.ms > 0 for point in profile.vision)
    assert profile.latency.vision == tuple(profile.vision)


def test_whole_tower_and_part_by_size(profile: Profile) -> None:
    tokens = [size.visual_tokens for size in profile.sizes]
    assert tokens == sorted(set(tokens), reverse=True)
    largest, *others = profile.sizes
    assert (largest.image_size, largest.visual_tokens, largest.reason) == ((448, 336), 192, "")
    assert largest.part is not None
    assert (largest.whole.keep, largest.part.keep) == (0.25, 0.25)
    assert largest.whole.kept_tokens == largest.part.kept_tokens == 48
    assert largest.whole.prompt_tokens == largest.part.prompt_tokens
    assert (largest.whole.glance_tokens, largest.part.glance_tokens) == (0, 48)
    assert largest.part.stage("glance_ms") > 0 == largest.whole.stage("glance_ms")
    assert all(len(values) == PLAN.repeats for values in largest.part.stages.values())
    assert others
    for size in others:  # too small for a glance
        assert (size.part, size.part_speedup, size.reason) == (None, None, "a smaller picture would show too little")
    assert profile.runs == [*profile.keeps, largest.part]
    assert [run.name for run in profile.runs] == ["1", "0.5", "0.25", "0.25, encode 0.25"]


def test_progress_ends_with_the_last_step(profile: Profile, steps: list[tuple[int, int]]) -> None:
    assert steps == [(done, PLAN.steps) for done in range(1, PLAN.steps + 1)]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") and tag != "use"]


def test_the_page_needs_no_other_file(profile: Profile, tmp_path: Path) -> None:
    write_reports(profile, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.links == []
    assert page.tags.count("svg") == 2 * 6  # each chart for wide and for narrow screens
    assert "script" not in page.tags
    for part in (profile.setting.bundle, profile.setting.environment.device, profile.setting.bundle_sha256[:16]):
        assert part in text


def test_json_and_csv_have_what_was_measured(profile: Profile, tmp_path: Path) -> None:
    write_reports(profile, None, tmp_path / "p.json", tmp_path / "p.csv")
    assert msgspec.json.decode((tmp_path / "p.json").read_bytes(), type=Profile) == profile
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [float(row["keep"]) for row in rows] == [1.0, 0.5, 0.25]
    for row, run in zip(rows, profile.keeps, strict=True):
        assert float(row["ttft_ms"]) == pytest.approx(run.ttft.median, abs=1e-3)
        assert int(row["kv_bytes"]) == run.kv_bytes


def test_a_name_with_markup_stays_text(profile: Profile, tmp_path: Path) -> None:
    setting = msgspec.structs.replace(profile.setting, bundle="<script>alert(1)</script>")
    write_reports(msgspec.structs.replace(profile, setting=setting), tmp_path / "report.html")
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_save_makes_milliseconds_a_budget(run: Run, reference_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "tiny.bundle"
    shutil.copytree(reference_bundle, bundle)
    scene = SCENES / "images" / "000004.png"
    refused = run("generate", bundle, "-i", scene, "What colour is the circle?", "--ttft-ms", "1000")
    assert_one_clear_line(refused, "foveate profile BUNDLE --save")
    small = ("--image-size", "448x336", "--keep", "0.5", "--repeats", "1", "--no-memory", "--concurrency", "")
    for _ in range(2):  # the second takes the place of the first
        saved = run("profile", bundle, *small, "--save")
        assert saved.exit_code == 0, saved.stderr
    opened = Bundle.open(bundle)
    assert (bundle / "manifest.json").read_bytes() == (reference_bundle / "manifest.json").read_bytes()
    (entry,) = read_latencies(bundle / "engines", opened.sha256)
    assert {point.tokens for point in entry.score} > {192}
    assert {point.tokens for point in entry.vision} > {192, 96, 21}
    answer = run("generate", bundle, "-i", scene, "What colour is the circle?", "--ttft-ms", "60000", "--json")
    facts = json.loads(answer.stdout)
    assert facts["selection"]["reason"] == "all tokens fit into 60000 ms"
    assert facts["predicted_ttft_ms"] > 0
    assert "predicted" in run("generate", bundle, "-i", scene, "What colour is it?", "--ttft-ms", "60000").stderr


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--image-size", "1008"), "--image-size is '1008'"),
        (("--image-size", "0x5"), "image_size is 0, 5, expected sides of at least 1 pixel. Change it. (--image-size)"),
        (("--keep", "1,a"), "--keep is '1,a'"),
        (("--keep", "1.5"), "keeps is 1.5, expected ratios above 0 and up to 1. Change it. (--keep)"),
        (("--concurrency", "0"), "clients is 0, expected at least 1. Change it. (--concurrency)"),
        (("--new-tokens", "1"), "new_tokens is 1, expected at least 2. Change it. (--new-tokens)"),
        (("--repeats", "0"), "repeats is 0, expected at least 1. Change it. (--repeats)"),
        (("-o", "nowhere/report.html"), "in a folder that does not exist"),
    ],
)
def test_bad_options(run: Run, reference_bundle: Path, options: tuple[str, ...], part: str) -> None:
    assert_one_clear_line(run("profile", reference_bundle, *options), part)


def invented(score: dict[int, float], prefill: dict[int, float], text: int, visual: int) -> Profile:
    """A profile with these latencies."""
    setting = Setting(
        "x", "0" * 64, 1, "m", "fp32", (1, 1), visual, text, 2, 1, Environment("c", 1, "b", {}), None, 1, {}, "2026-01-01"
    )
    stages = {key: [1.0] for key in STAGES}
    keeps = [
        KeepRun(keep, math.ceil(keep * visual), text + math.ceil(keep * visual), stages, [], 1, None) for keep in (1.0, 0.5)
    ]
    lines = [[LatencyPoint(tokens, ms) for tokens, ms in line.items()] for line in (score, prefill)]
    return Profile(setting, keeps, {}, [], [LatencyPoint(1, 1.0)], *lines, None, 1.0, [], [])


@given(st.floats(0, 300), st.integers(2, 400))
def test_break_even_is_where_scoring_begins_to_pay(score_ms: float, visual: int) -> None:
    profile = invented({1: score_ms, visual: score_ms}, {1: 1.0, 1000: 1000.0}, 20, visual)
    found = profile.break_even_tokens(0.5)

    def saved(tokens: int) -> int:
        return tokens - (tokens + 1) // 2

    if found is None:
        assert saved(visual) <= score_ms + 1e-6
    else:
        assert saved(found) > score_ms - 1e-6
        assert found == 1 or saved(found - 1) <= score_ms + 1e-6


def test_what_is_said_of_break_even() -> None:
    paying = invented({1: 5.0, 100: 5.0}, {1: 1.0, 1000: 1000.0}, 20, 100)
    assert break_even_remark(paying) == "Scoring takes less time than it saves from so many visual tokens on: 12 at keep 0.5."
    never = invented({1: 50.0, 100: 50.0}, {1: 1.0, 1000: 1000.0}, 20, 100)
    assert break_even_remark(never) == "At keep 0.5 it does not pay up to 100 visual tokens."


def test_the_stages_add_up_to_the_first_token() -> None:
    """The sum of medians, and not the median of sums, which here are 6 and 4."""
    stages = dict.fromkeys(STAGES, [0.0] * 3) | {"vision_ms": [1.0, 3.0, 9.0], "prefill_ms": [3.0, 1.0, 3.0]}
    run = KeepRun(1.0, 1, 1, stages, [], 1, None)
    assert run.ttft.median == sum(run.stage(name) for name in STAGES) == 6.0
    assert run.ttft.low <= run.ttft.median <= run.ttft.high
    measured = zip(stages["vision_ms"], stages["prefill_ms"], strict=True)
    timings = [Timings(vision_ms=vision, prefill_ms=prefill) for vision, prefill in measured]
    assert sum(first_token(timings).values()) == 6.0


def test_a_stage_that_was_left_out_is_not_drawn(profile: Profile) -> None:
    """`glance` is for requests that say what the tower may compute: with a model that computes no parts there are none."""
    assert [stage.name for stage in profile.stages] == [stage.name for stage in FIRST_TOKEN if stage.name != "queue"]
    assert "<!-- glance -->" in stages_chart(profile)
    whole = msgspec.structs.replace(profile, sizes=[refused(size) for size in profile.sizes])
    assert [stage.name for stage in whole.stages] == ["preprocess", "vision", "score", "select", "embed", "prefill"]
    keeps, *others = _tables(whole)
    assert "glance" not in keeps.columns
    assert "Whole tower and part, by size of the image" not in [table.title for table in others]
    assert "<!-- glance -->" not in stages_chart(whole)
    assert b"A part of the tower" not in make_page(whole)
    assert part_remark(whole) == "Nothing is encoded in part: the vision tower takes whole pictures."


def refused(size: SizeRun) -> SizeRun:
    return msgspec.structs.replace(size, part=None, reason="the vision tower takes whole pictures")


def sized(tokens: int, whole_ms: float, part_ms: float | None) -> SizeRun:
    """An image whose first token takes so long, all of it in the tower."""

    def run(ms: float, glance_tokens: int) -> KeepRun:
        stages = {key: [ms if key == "vision_ms" else 0.0] for key in STAGES}
        return KeepRun(0.5, tokens // 2, tokens, stages, [], 1, None, glance_tokens=glance_tokens)

    part = None if part_ms is None else run(part_ms, tokens // 4)
    return SizeRun((tokens, 1), tokens, run(whole_ms, 0), part, "too small" if part is None else "")


@pytest.mark.parametrize(
    ("parts", "pays"),
    [
        ([30.0, 20.0, 9.0], 100),
        ([30.0, 20.0, 11.0], 200),
        ([30.0, 20.0, None], 200),
        ([30.0, 50.0, 9.0], 400),
        ([90.0, 20.0, 9.0], None),
        ([None, None, None], None),
    ],
)
def test_from_which_size_on_a_part_pays(parts: list[float | None], pays: int | None) -> None:
    times = zip((400, 200, 100), (80.0, 40.0, 10.0), parts, strict=True)
    profile = msgspec.structs.replace(invented({1: 1.0}, {1: 1.0}, 20, 400), sizes=[sized(*size) for size in times])
    assert profile.part_pays_from == pays
    remark = part_remark(profile)
    if parts[0] is None:
        assert remark == "Nothing is encoded in part: too small."
        return
    assert remark.startswith(f"With encode 0.5 the first token comes after {parts[0]:.0f} ms in place of 80 ms (")
    assert remark.endswith(
        f"from {pays} visual tokens on, of 400, 200, 100 that were measured." if pays else "It does not pay."
    )


def test_the_share_of_the_tower() -> None:
    """Of the stages that take a millisecond each two are runs of the vision graph."""
    profile = invented({1: 1.0}, {1: 1.0}, 20, 100)
    assert profile.whole.tower_share == pytest.approx(2 / 8)
    assert tower_remark(profile) == "The vision tower's share of the time to first token: 25 % at keep 1."
    with_sizes = msgspec.structs.replace(profile, sizes=[sized(100, 80.0, 30.0)])
    assert tower_remark(with_sizes).endswith("25 % at keep 1; 100 % at keep 0.5; 100 % at keep 0.5, encode 0.5.")


@pytest.mark.parametrize(("keeps", "part"), [((1.0,), 0.25), ((0.75, 0.5), 0.5), ((1.0, 0.3, 0.1), 0.3), ((0.2, 0.25), 0.25)])
def test_the_ratio_of_the_part(keeps: tuple[float, ...], part: float) -> None:
    plan = ProfilePlan(keeps=keeps)
    assert plan.part_keep == part
    assert {1.0, part, *keeps} == set(plan.ratios_of_sizes[0])
    assert set(plan.ratios_of_sizes[1:]) == {(1.0, part)}


def test_every_report_has_the_same_first_token(profile: Profile, tmp_path: Path) -> None:
    write_reports(profile, tmp_path / "report.html", csv_file=tmp_path / "p.csv")
    page = (tmp_path / "report.html").read_text()
    for run, row in zip(profile.keeps, csv.DictReader((tmp_path / "p.csv").read_text().splitlines()), strict=True):
        assert float(row["ttft_ms"]) == pytest.approx(sum(float(row[name]) for name in STAGES), abs=1e-3)
        assert f">{run.ttft.median:,.1f}<" in page
    assert f"<b>{profile.whole.ttft.median:,.0f} ms</b>" in page


def test_spread_and_percentiles() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    load = LoadRun(2, 1.0, 2.0, [float(ms) for ms in range(1, 11)], 30)
    assert (load.percentile(0.5), load.percentile(0.95), load.percentile(1.0)) == (6.0, 10.0, 10.0)
    assert (load.requests_per_second, load.tokens_per_second) == (5.0, 15.0)

"""Accuracy with fewer visual tokens: what is asked, and the figures of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from foveate import Pipeline, Request, RequestError
from foveate.engines.errors import DataError, OptionError
from foveate.evaluate import (
    Estimate,
    Plan,
    Record,
    Reply,
    Results,
    ask,
    evaluate,
    remark,
    retention_curve,
    summarise,
    tables,
    wilson,
)
from foveate.runtime import Encoded, Prepared, Relevance
from foveate.samples import Sample
from tests.foveate.conftest import KEEPS, SAMPLES, SELECTORS


def last_tokens(relevance: Relevance, count: int) -> np.ndarray:
    return np.arange(len(relevance) - count, len(relevance))


@pytest.mark.parametrize(
    ("keeps", "selectors", "part", "option"),
    [
        ([], ["attention"], "below 1", "keeps"),
        ([1.0], ["attention"], "below 1", "keeps"),
        ([0.5, 1.5], ["attention"], "1.5", "keeps"),
        ([0.5, float("nan")], ["attention"], "nan", "keeps"),
        ([0.5, 0.25, 0.5], ["attention"], "keep ratio 0.5 is given 2 times", "keeps"),
        ([1, 1.0, 0.5], ["attention"], "is given 2 times", "keeps"),
        ([0.5], [], "no selector", "selectors"),
        ([0.5], ["atention"], "no selector 'atention'", "selectors"),
        ([0.5], ["attention", "random", "attention"], "selector attention is given 2 times", "selectors"),
        ([0.5], ["attention", "oracle"], "Give labels", "labels"),
    ],
)
def test_what_can_not_be_asked(pipe: Pipeline, keeps: list[float], selectors: list[str], part: str, option: str) -> None:
    with pytest.raises(OptionError) as caught:
        evaluate(pipe, SAMPLES, keeps, selectors)
    assert part in str(caught.value)
    assert "--" not in str(caught.value)
    assert caught.value.options == (option,)


def test_labels_without_their_selector(pipe: Pipeline) -> None:
    with pytest.raises(OptionError, match="drop the labels"):
        evaluate(pipe, SAMPLES, [0.5], ["attention"], oracle={})


def test_no_samples(pipe: Pipeline) -> None:
    with pytest.raises(OptionError, match="no samples"):
        evaluate(pipe, [], [0.5], ["attention"])


def test_answers_are_those_of_generate(pipe: Pipeline) -> None:
    plan = Plan.make(KEEPS, SELECTORS, max_new_tokens=2)
    for record in ask(pipe, SAMPLES[:3], plan):
        sample = SAMPLES[record.number]
        asked = [(reply.selector, reply.keep) for reply in record.replies]
        assert asked == [("all", 1.0), *((name, keep) for name in SELECTORS for keep in KEEPS[1:])]
        for reply in record.replies:
            select = None if reply.selector == "all" else reply.selector
            request = Request.ask(sample.question, sample.image, keep=reply.keep, select=select, max_new_tokens=2)
            answer = pipe.generate(request)
            assert reply.text == answer.text
            assert reply.right == sample.answered_by(answer.text)
            assert reply.kept_tokens == len(answer.selection.keep_indices)


def test_every_sample_is_asked_once_per_selector_and_keep_ratio(pipe: Pipeline) -> None:
    counts: Counter[int] = Counter()
    steps: list[tuple[int, int]] = []

    def counted(relevance: Relevance, count: int) -> np.ndarray:
        counts[count] += 1
        return last_tokens(relevance, count)

    results = evaluate(
        pipe, SAMPLES[:2], [0.1, 0.5], ["counted"], custom={"counted": counted}, progress=lambda *step: steps.append(step)
    )
    assert sum(counts.values()) == 4
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert results.keeps == (0.5, 0.1)
    assert [(row.keep, row.questions) for row in results.overall.rows] == [(0.5, 2), (0.1, 2)]


def test_a_sample_is_scored_once_for_all_selectors(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[frozenset[str]] = []

    def score(prepared: Prepared, visual_embeds: np.ndarray, needed: frozenset[str]) -> Relevance:
        needs.append(needed)
        return Pipeline.score(pipe, prepared, visual_embeds, needed)

    monkeypatch.setattr(pipe, "score", score)
    evaluate(pipe, SAMPLES[:2], [0.5, 0.25], ["attention", "cdpruner", "random"])
    asked = frozenset({"attention", "text_embeds", "seed"})
    assert [needed for needed in needs if needed] == [asked, asked]


def test_the_vision_graph_runs_once_for_questions_in_a_row_about_one_image(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[np.ndarray] = []

    def vision(prepared: Prepared) -> np.ndarray:
        images.append(prepared.visuals[0].feeds["pixel_values"])
        return Pipeline.vision(pipe, prepared)

    first, second, other = SAMPLES[:3]
    assert first.image == second.image != other.image
    monkeypatch.setattr(pipe, "vision", vision)
    evaluate(pipe, [first, second, other, first], [0.5], ["attention"])
    of_first, of_other, again = images
    assert not np.array_equal(of_first, of_other)
    np.testing.assert_array_equal(of_first, again)


def test_visual_embeds_of_another_image_are_refused(pipe: Pipeline) -> None:
    request = Request.ask(SAMPLES[0].question, SAMPLES[0].image)
    embeds = pipe.encode(request).visual_embeds
    with pytest.raises(RequestError, match="Give those of the same images"):
        pipe.encode(request, embeds[1:])


@pytest.fixture(scope="module")
def results(pipe: Pipeline) -> Results:
    return evaluate(pipe, SAMPLES, KEEPS, ["attention", "last"], custom={"last": last_tokens})


def test_figures_are_those_of_the_answers(results: Results) -> None:
    whole, rows = results.overall.whole, {(row.selector, row.keep): row for row in results.overall.rows}
    assert whole.right == whole.whole_right == 12  # the reference checkpoint knows these answers
    assert whole.stay == whole.accuracy == wilson(12, 12)
    assert whole.stay.low < 0.8  # twelve answers do not show that all stay
    assert whole.retained is not None
    assert whole.retained.low < 0.9
    first, last = rows["attention", 0.05], rows["last", 0.05]
    assert last.accuracy == wilson(last.right, 12)
    assert last.retained is not None
    assert last.retained.value == last.right / 12
    assert last.stay == wilson(last.right, 12)  # all were right at keep 1
    assert last.difference_points is not None
    assert last.difference_points.value == pytest.approx(100 * (last.right - first.right) / 12)
    assert last.right < first.right  # the last twentieth of a scene does not hold the answers
    assert first.difference_points is None
    assert whole.kept_tokens > rows["last", 0.25].kept_tokens > last.kept_tokens


def test_types_add_up_to_the_whole(results: Results) -> None:
    assert [group.type for group in results.types] == list(dict.fromkeys(sample.type for sample in SAMPLES))
    for index, row in enumerate(results.overall.rows):
        of_types = [group.rows[index] for group in results.types]
        assert {(part.selector, part.keep) for part in of_types} == {(row.selector, row.keep)}
        assert sum(part.questions for part in of_types) == row.questions
        assert sum(part.right for part in of_types) == row.right


def test_answers_that_become_right_do_not_stay() -> None:
    """Four questions: right before and after, lost, won, never right. The net ratio hides the lost one."""
    samples = [Sample(image=f"{number}.png", question="?", answer="a") for number in range(4)]
    texts = {("all", 1.0): "aabb", ("attention", 0.5): "abab"}
    records = [
        Record(number, 0.0, tuple(Reply(*key, row[number], row[number] == "a", 1) for key, row in texts.items()))
        for number in range(4)
    ]
    (row,) = summarise(samples, records, Plan.make([0.5], ["attention"])).overall.rows
    assert row.stay == wilson(1, 2)
    assert row.retained is not None
    assert row.retained.value == 1.0


def test_tables_have_every_figure(results: Results) -> None:
    overall, accuracy, kept = tables(results)
    assert [row[:2] for row in overall.rows] == [
        *[("1", "all"), ("0.25", "attention"), ("0.25", "last"), ("0.05", "attention"), ("0.05", "last")],
    ]
    assert {len(row) for table in (overall, accuracy, kept) for row in table.rows} == {8, 2 + len(results.types)}
    assert all(len(row) == len(table.columns) for table in (overall, accuracy, kept) for row in table.rows)


def test_samples_without_types_are_one_group(pipe: Pipeline) -> None:
    plain = [msgspec.structs.replace(sample, type="") for sample in SAMPLES[:2]]
    results = evaluate(pipe, plain, [0.5], ["attention"])
    (group,) = results.types
    assert group.rows == results.overall.rows
    assert len(tables(results)) == 1


def test_a_retention_curve_for_the_manifest(results: Results) -> None:
    rows = [row for row in results.overall.rows if row.selector == "last"]
    points = retention_curve(results, "last")
    assert [(point.keep, point.retained, point.questions) for point in points] == [
        (row.keep, row.retained.value, 12) for row in rows if row.retained
    ]
    assert [Estimate(*point.share) for point in points] == [row.stay for row in rows]
    with pytest.raises(OptionError, match=r"'learned'.*attention, last"):
        retention_curve(results, "learned")


def test_nothing_right_at_keep_1_retains_nothing(pipe: Pipeline) -> None:
    wrong = [msgspec.structs.replace(sample, answer="a cat") for sample in SAMPLES[:3]]
    results = evaluate(pipe, wrong, [0.5], ["attention"])
    assert results.overall.rows[0].retained is None
    assert tables(results)[0].rows[1][5:7] == ("-", "-")
    with pytest.raises(DataError, match="no answer of 3 was right"):
        retention_curve(results, "attention")


def test_random_tokens_are_those_of_the_question(pipe: Pipeline) -> None:
    first, second, other = SAMPLES[:3]  # two questions about one image, and one about another

    def kept(question: str, image: str) -> list[int]:
        request = Request.ask(question, image, keep=0.25, select="random", max_new_tokens=1)
        return pipe.generate(request).selection.keep_indices.tolist()

    subsets = [kept(first.question, first.image), kept(second.question, first.image), kept(first.question, other.image)]
    assert len({tuple(subset) for subset in subsets}) == 3
    assert subsets[0] == kept(first.question, first.image)
    request = Request.ask(first.question, first.image, keep=0.25, select="random", max_new_tokens=1)
    encoded = pipe.encode(request)
    assert pipe.generate(request, encoded).selection.keep_indices.tolist() == subsets[0]
    for answer in pipe.generate_batch([Request.ask("What?", other.image), request])[1:]:
        assert answer.selection.keep_indices.tolist() == subsets[0]


# A part of the tower


ENCODES = (0.25, "auto", 0.5)
SEEN_WHOLE = "a smaller picture would show too little"


@pytest.fixture(scope="module")
def parts(pipe: Pipeline) -> list[Record]:
    """Six questions, two each about a large, a small and another small picture."""
    return list(ask(pipe, SAMPLES[:6], Plan.make(KEEPS, SELECTORS, max_new_tokens=2, encodes=ENCODES)))


def foveated(record: Record) -> list[Reply]:
    return [reply for reply in record.replies if reply.encode is not None]


def test_answers_with_a_part_of_the_tower_are_those_of_generate(pipe: Pipeline, parts: list[Record]) -> None:
    for record in parts:
        sample = SAMPLES[record.number]
        asked = [(reply.encode, reply.keep) for reply in foveated(record)]
        assert asked == [(0.5, 0.25), (0.5, 0.05), (0.25, 0.25), (0.25, 0.05), ("auto", 0.25), ("auto", 0.05)]
        for reply in foveated(record):
            assert reply.selector == "attention"  # random can't choose before the tower
            pipe.vision_cache.clear()  # with auto, what was computed for another question is taken as it is
            options = {"keep": reply.keep, "encode": reply.encode, "select": reply.selector, "max_new_tokens": 2}
            answer = pipe.generate(Request.ask(sample.question, sample.image, **options))
            assert (reply.text, reply.encoding) == (answer.text, answer.encoding)
            assert reply.kept_tokens == len(answer.selection.keep_indices)
    whole = [reply.seen_whole for record in parts for reply in foveated(record)]
    assert 0 < sum(whole) < len(whole)


def test_a_share_of_the_tower_is_computed_once_for_all_keep_ratios(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def encode(request: Request, visual_embeds: object = None) -> Encoded:
        seen.append(request.encode)
        return Pipeline.encode(pipe, request, visual_embeds)

    monkeypatch.setattr(pipe, "encode", encode)
    evaluate(pipe, SAMPLES[:1], KEEPS, ["attention"], encodes=[0.5, "auto"], max_new_tokens=1)
    assert seen == [None, 0.5, "auto", "auto"]


def test_a_part_with_a_reason_is_no_whole_tower(parts: list[Record]) -> None:
    """As where `auto` leaves redundant visual tokens out, and says why it took no glance."""
    reply = next(reply for record in parts for reply in foveated(record) if reply.seen_whole)
    assert reply.encoding is not None
    fewer = replace(reply.encoding, encoded_tokens=reply.encoding.visual_tokens - 1)
    assert not msgspec.structs.replace(reply, encoding=fewer).seen_whole


def test_figures_say_what_the_tower_saw(parts: list[Record]) -> None:
    plan = Plan.make(KEEPS, SELECTORS, encodes=ENCODES)
    results = summarise(SAMPLES[:6], parts, plan)
    rows = {row.key: row for row in results.overall.rows}
    assert results.encodes == (0.5, 0.25, "auto")
    half, quarter, auto, whole = (rows["attention", 0.25, encode] for encode in (0.5, 0.25, "auto", None))
    assert (whole.tower, whole.seen_whole) == (1.0, 0)
    assert quarter.tower < half.tower < 1
    assert quarter.tower == auto.tower  # it computes what is kept
    encodings = [reply.encoding for record in parts for reply in foveated(record)[:1] if reply.encoding]
    tokens = [seen.encoded_tokens + seen.glance_tokens for seen in encodings]
    assert half.tower == pytest.approx(sum(tokens) / sum(seen.visual_tokens for seen in encodings))
    assert half.questions == 6
    assert half.seen_whole == 4
    looked = {SEEN_WHOLE: 4}, {f"no visual token repeats its neighbours; {SEEN_WHOLE}": 4}  # auto looks for those as well
    assert results.seen_whole == dict(
        zip(("0.5", "0.25", "auto, keep 0.25", "auto, keep 0.05"), (looked[0], looked[0], looked[1], looked[1]), strict=True)
    )
    told = f"the tower saw everything for 4 of 6 questions: {SEEN_WHOLE} (4)"
    assert told in remark(results)
    assert "before the tower: random." in remark(results)
    overall = tables(results)[0]
    assert overall.columns[:4] == ("encode : keep", "selector", "tower %", "seen whole")
    assert [row[0] for row in overall.rows[:2]] == ["all : 1", "all : 0.25"]
    assert ("0.5 : 0.25", "attention", f"{100 * half.tower:.1f}", "4") in [row[:4] for row in overall.rows]
    assert all(len(row) == len(table.columns) for table in tables(results) for row in table.rows)


def test_a_curve_of_parts_leaves_out_what_was_seen_whole(parts: list[Record]) -> None:
    plan = Plan.make(KEEPS, SELECTORS, encodes=ENCODES)
    results = summarise(SAMPLES[:6], parts, plan, parts_only=True)
    points = retention_curve(results, "attention")
    assert [(point.encode, point.keep, point.questions) for point in points] == [
        *[(None, 0.25, 6), (None, 0.05, 6)],
        *[(0.5, 0.25, 2), (0.5, 0.05, 2), (0.25, 0.25, 2), (0.25, 0.05, 2)],
    ]
    assert results.seen_whole["0.5"] == {SEEN_WHOLE: 4}
    assert max(row.tower for row in results.overall.rows if row.encode == 0.25) < 0.6
    small = summarise(SAMPLES[2:6], parts[2:], plan, parts_only=True)
    assert [point.encode for point in retention_curve(small, "attention")] == [None, None]


@pytest.mark.parametrize(
    ("encodes", "selectors", "part"),
    [
        ([1.5], ["attention"], "encode is 1.5"),
        (["half"], ["attention"], "expected a share above 0, up to 1, or auto"),
        ([0.5, 0.5], ["attention"], "encode 0.5 is given 2 times"),
        ([0.5, 0.1], ["attention"], "encode 0.1 is below every keep ratio"),
        ([0.5], ["random", "cdpruner"], "none of the selectors (random, cdpruner) can choose before the tower"),
    ],
)
def test_parts_that_can_not_be_asked_for(pipe: Pipeline, encodes: list[Any], selectors: list[str], part: str) -> None:
    with pytest.raises(OptionError) as caught:
        evaluate(pipe, SAMPLES, [0.5, 0.25], selectors, encodes=encodes)
    assert part in str(caught.value)
    assert caught.value.options[0] == "encodes"


def test_the_whole_tower_is_asked_in_any_case() -> None:
    assert Plan.make([0.5], ["random"], encodes=[1]) == Plan.make([0.5], ["random"])


# The oracle


def attention_of(pipe: Pipeline, sample: Sample) -> np.ndarray:
    request = Request.ask(sample.question, sample.image)
    encoded = pipe.encode(request)
    relevance = pipe.score(encoded.prepared, encoded.visual_embeds)
    assert relevance.attention is not None
    return relevance.attention


def test_the_oracle_chooses_by_its_labels_where_there_are_any(pipe: Pipeline) -> None:
    oracle = {number: attention_of(pipe, SAMPLES[number]) for number in (0, 3, 6, 9)}
    plan = Plan.make([0.05], ["last", "attention", "oracle"], {"last": last_tokens}, oracle)
    records = list(ask(pipe, SAMPLES, plan))
    texts = [{reply.selector: reply.text for reply in record.replies} for record in records]
    assert [number for number, answered in enumerate(texts) if "oracle" in answered] == [0, 3, 6, 9]
    assert all(answered["oracle"] == answered["attention"] for answered in texts[::3])

    results = summarise(SAMPLES, records, plan)
    _, _, row = results.overall.rows
    assert (row.selector, row.questions, row.whole_right, results.unlabelled) == ("oracle", 4, 4, 8)
    last_right = sum(record.replies[1].right for record in records[::3])
    assert row.difference_points is not None
    assert row.difference_points.value == pytest.approx(25 * (row.right - last_right))
    assert "8 of 12 questions have no label" in remark(results)
    assert any(not any(row.selector == "oracle" for row in group.rows) for group in results.types)


def test_an_oracle_without_any_label_has_no_rows(pipe: Pipeline) -> None:
    results = evaluate(pipe, SAMPLES[:2], [0.5], ["attention", "oracle"], oracle={})
    assert [row.selector for row in results.overall.rows] == ["attention"]
    assert results.unlabelled == 2


def test_labels_of_another_image_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="labels of this very sample"):
        evaluate(pipe, SAMPLES, [0.5], ["oracle"], oracle={0: np.ones(3, np.float32)})

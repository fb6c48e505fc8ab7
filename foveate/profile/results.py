"""What a profile measured, as plain values, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from statistics import median, quantiles

import msgspec
import numpy as np

from foveate.engines import Environment, LatencyEntry, LatencyPoint, RetentionPoint
from foveate.runtime import Budget
from foveate.runtime.latency import LatencyModel
from foveate.runtime.stages import ANSWERING, FIRST_TOKEN, TOWER, Stage, Timings


def first_token(timings: Iterable[Timings]) -> dict[str, float]:
    """Median milliseconds of each of `FIRST_TOKEN`. The time to first token is their sum, wherever this project reports one of
    several answers: stages are measured on their own, so which of their repeats met in one answer means nothing."""
    timings = list(timings)
    return {stage.key: median(getattr(one, stage.key) for one in timings) for stage in FIRST_TOKEN}


def percent(share: float) -> str:
    """In whole per cent."""
    return f"{100 * share:.0f} %"


class Spread(msgspec.Struct, frozen=True):
    """Median and quartiles of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


class KeepRun(msgspec.Struct, frozen=True):
    """One keep ratio.

    Attributes:
        keep: share of the visual tokens that stay.
        kept_tokens: how many that are.
        prompt_tokens: tokens that the prefill saw.
        stages: milliseconds of each stage up to the first token, a repeat each.
        decode_ms: milliseconds of every token after the first: inter-token latency.
        kv_bytes: of the cache, allocated.
        peak_bytes: most resident memory of a process that answers one question like this; None where it is not known.
        reason: why nothing was pruned; empty where something was.
        glance_tokens: of the small picture that the tower looked at first, before it computed the kept tokens alone; 0 where it
            computed all.
    """

    keep: float
    kept_tokens: int
    prompt_tokens: int
    stages: dict[str, list[float]]
    decode_ms: list[float]
    kv_bytes: int
    peak_bytes: int | None
    reason: str = ""
    glance_tokens: int = 0

    @property
    def name(self) -> str:
        """What a request of this kind says: its keep ratio, and `encode` where the tower computes a part."""
        return f"{self.keep:g}, encode {self.keep:g}" if self.glance_tokens else f"{self.keep:g}"

    @property
    def tower_share(self) -> float:
        """Of the vision tower, in the time to first token."""
        return self.total(TOWER) / self.ttft.median

    def stage(self, name: str) -> float:
        """Median milliseconds of a stage."""
        return median(self.stages[name])

    def total(self, stages: Iterable[Stage]) -> float:
        """Median milliseconds of some stages together."""
        return sum(self.stage(stage.key) for stage in stages)

    @property
    def ttft(self) -> Spread:
        """Milliseconds from pixels to the first token: the sum over the stages of their medians, and of their quartiles."""
        spreads = [Spread.of(self.stages[stage.key]) for stage in FIRST_TOKEN]
        return Spread(*(sum(getattr(spread, name) for spread in spreads) for name in Spread.__struct_fields__))

    @property
    def llm_ms(self) -> float:
        """Of all stages that the budget shortens."""
        return self.total(ANSWERING)

    @property
    def decode(self) -> Spread | None:
        """Milliseconds between tokens; None where an answer is one token."""
        return Spread.of(self.decode_ms) if self.decode_ms else None


class SizeRun(msgspec.Struct, frozen=True):
    """An image of one size, at one keep ratio.

    Attributes:
        image_size: width and height in pixels.
        visual_tokens: of it.
        whole: with all visual tokens computed, and then pruned.
        part: with a glance, and the kept ones computed alone; None where that can't be.
        reason: why not; empty where it can.
    """

    image_size: tuple[int, int]
    visual_tokens: int
    whole: KeepRun
    part: KeepRun | None
    reason: str = ""

    @property
    def part_speedup(self) -> float | None:
        """Of the time to first token."""
        return None if self.part is None else self.whole.ttft.median / self.part.ttft.median


class LoadRun(msgspec.Struct, frozen=True):
    """Several clients at once, each with one request after the other.

    Attributes:
        clients: how many.
        keep: share of the visual tokens that stay.
        seconds: from the first request to the last answer.
        ttft_ms: of every request, from handing it in.
        tokens: drawn in all.
    """

    clients: int
    keep: float
    seconds: float
    ttft_ms: list[float]
    tokens: int

    @property
    def requests_per_second(self) -> float:
        return len(self.ttft_ms) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds to first token that this share of the requests stays within, by the nearest rank."""
        ordered = sorted(self.ttft_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Setting(msgspec.Struct, frozen=True):
    """What was run, and where.

    Attributes:
        bundle: its name.
        bundle_sha256: of its manifest, which has the hashes of its files.
        bundle_bytes: of all its files.
        model: the checkpoint that it was made from.
        precision: of its graphs.
        image_size: width and height in pixels.
        visual_tokens: of that image.
        text_tokens: of the prompt beside them.
        new_tokens: of each answer.
        repeats: of each measurement, after one that warms up.
        environment: device, backend and options.
        vision_backend: what runs the vision graph; None where it is the same.
        threads: of the CPU, that graphs run on.
        versions: of foveate, Python and the operating system.
        date: day, as YYYY-MM-DD.
    """

    bundle: str
    bundle_sha256: str
    bundle_bytes: int
    model: str
    precision: str
    image_size: tuple[int, int]
    visual_tokens: int
    text_tokens: int
    new_tokens: int
    repeats: int
    environment: Environment
    vision_backend: str | None
    threads: int
    versions: dict[str, str]
    date: str


class Profile(msgspec.Struct, frozen=True, tag_field="schema", tag="foveate.profile.1"):
    """Everything that one profile measured.

    Attributes:
        setting: of all measurements.
        keeps: one run each, descending; the first is keep 1.
        second_question: keep ratio -> milliseconds to the first token of another question about the same image.
        sizes: with the whole tower and with a part of it, by size of the image, the largest first.
        vision: milliseconds of the vision graph, by visual tokens of one run: a picture or a part of it.
        score: milliseconds of scoring and selecting, by visual tokens.
        prefill: milliseconds of embedding and prefill, by tokens of the prompt.
        loaded_bytes: resident memory of a process that has opened the bundle; None where it is not known.
        load_seconds: what opening took.
        load: with several clients.
        retention: the bundle's curve; empty where it was not measured.
    """

    setting: Setting
    keeps: list[KeepRun]
    second_question: dict[str, float]
    sizes: list[SizeRun]
    vision: list[LatencyPoint]
    score: list[LatencyPoint]
    prefill: list[LatencyPoint]
    loaded_bytes: int | None
    load_seconds: float
    load: list[LoadRun]
    retention: list[RetentionPoint]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the first token that took any time; the others were left out at every ratio."""
        return tuple(stage for stage in FIRST_TOKEN if any(run.stage(stage.key) for run in self.runs))

    @property
    def runs(self) -> list[KeepRun]:
        """The keep ratios, and at one of them a part of the tower."""
        part = self.sizes[0].part if self.sizes else None
        return self.keeps if part is None else [*self.keeps, part]

    @property
    def whole(self) -> KeepRun:
        """Keep 1."""
        return self.keeps[0]

    @property
    def latency(self) -> LatencyEntry:
        """What budgets in milliseconds are planned with."""
        return LatencyEntry(self.setting.environment, tuple(self.vision), tuple(self.score), tuple(self.prefill))

    def speedup(self, run: KeepRun) -> float:
        """Of everything that hangs on the number of visual tokens, against keep 1."""
        return self.whole.llm_ms / run.llm_ms

    def ideal_speedup(self, run: KeepRun) -> float:
        """As if time went with the tokens of the prompt, and scoring were free."""
        return self.whole.prompt_tokens / run.prompt_tokens

    def break_even_tokens(self, keep: float) -> int | None:
        """The fewest visual tokens from which scoring takes less time than pruning to `keep` saves; None where even the
        largest number that was measured is too few."""
        model, text = LatencyModel(self.latency), self.setting.text_tokens
        most = max(chain((point.tokens for point in self.score), [1]))

        def pays(tokens: int) -> bool:
            kept = Budget(ratio=keep).count(np.empty(tokens))
            return model.score_ms(tokens) < model.prefill_ms(text + tokens) - model.prefill_ms(text + kept)

        paying = 0
        for tokens in range(most, 0, -1):
            if not pays(tokens):
                break
            paying = tokens
        return paying or None

    @property
    def part_pays_from(self) -> int | None:
        """Visual tokens of the smallest measured image from which on, up to the largest, a glance and a part are faster than
        the whole tower; None where they are not even at the largest."""
        paying = None
        for size in self.sizes:
            if size.part_speedup is None or size.part_speedup <= 1:
                break
            paying = size.visual_tokens
        return paying

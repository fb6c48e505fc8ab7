"""What a load test measured, as plain values, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean, median

import msgspec
import numpy as np

from foveate.bench.plan import Kind, Load

_LEAST_GAPS = 3
"""Of a request whose longest gap is held against its median."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Milliseconds count from when it was due: in an open loop a late generator is no excuse for a server.

    Attributes:
        due_ms: when it was to be sent, from the start of its point and round.
        lag_ms: how much later it was sent.
        picture: whether it has an image or a video.
        status: of HTTP; 0 where there was no answer.
        error: kind of what went wrong; empty where nothing did.
        ttft_ms: until the first text came; null where none came.
        gaps_ms: between the chunks of text after it.
        end_to_end_ms: until the answer was complete or failed.
        chunks: of text.
        output_tokens: by the server's `usage`, or where it gives none as many as there are chunks.
        by_usage: whether `output_tokens` is the server's own figure.
        prompt_tokens: by the server's `usage`; null where it gives none.
        visual_tokens: of the request; null where the server does not say, as foveate does.
        kept_tokens: how many of them stayed.
    """

    due_ms: float
    lag_ms: float
    picture: bool
    status: int
    error: str = ""
    ttft_ms: float | None = None
    gaps_ms: list[float] = []
    end_to_end_ms: float
    chunks: int = 0
    output_tokens: int = 0
    by_usage: bool = False
    prompt_tokens: int | None = None
    visual_tokens: int | None = None
    kept_tokens: int | None = None

    @property
    def gap_ratio(self) -> float | None:
        """The longest gap over the median gap; None where there are too few."""
        middle = median(self.gaps_ms) if len(self.gaps_ms) >= _LEAST_GAPS else 0
        return max(self.gaps_ms) / middle if middle else None

    def is_good(self, ttft_slo_ms: float | None, itl_slo_ms: float | None) -> bool:
        """Whether it was answered within the limits: the first text, and the mean gap after it."""
        if self.error or self.ttft_ms is None or (ttft_slo_ms is not None and self.ttft_ms > ttft_slo_ms):
            return False
        return itl_slo_ms is None or not self.gaps_ms or fmean(self.gaps_ms) <= itl_slo_ms


class Percentiles(msgspec.Struct, frozen=True):
    """Mean and percentiles of many values; between two of them a percentile is interpolated."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Percentiles | None:
        """None where there is no value."""
        found = np.fromiter(values, float)
        if not len(found):
            return None
        p50, p90, p95, p99 = map(float, np.quantile(found, (0.5, 0.9, 0.95, 0.99)))
        return cls(float(found.mean()), p50, p90, p95, p99, float(found.max()))


class ServerMemory(msgspec.Struct, frozen=True):
    """The most that the server's processes took while a point was measured.

    Attributes:
        resident_bytes: with the pages of mapped files that were read.
        private_bytes: anonymous pages, also those that were swapped out (RssAnon + VmSwap); null where the server only says its
            resident memory.
        source: `processes` of a server that was started for this, or its `/metrics`.
    """

    resident_bytes: int
    private_bytes: int | None
    source: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests of a point come to. Times are those of requests that were answered whole.

    Attributes:
        requests: sent.
        answered: whole, without an error.
        errors: how many of each kind.
        requests_per_second: answered, from the first request to the last answer.
        output_tokens_per_second: of answered requests.
        tokens_by: `usage`, `chunks`, or `usage and chunks`.
        ttft_ms: from when a request was due to its first text.
        itl_ms: gaps between chunks of text, of all requests together.
        end_to_end_ms: from when a request was due to the end of its answer.
        gap_ratio: longest gap over median gap of each request.
        good_share: of the requests sent, those answered within the limits; null where no limit was set.
        goodput_per_second: as many a second; null where no limit was set.
        lag_ms: how much later than due the generator sent.
        visual_tokens, kept_tokens: means over the requests whose answer says so; null where none does.
    """

    requests: int
    answered: int
    errors: dict[str, int]
    requests_per_second: float
    output_tokens_per_second: float
    tokens_by: str
    ttft_ms: Percentiles | None
    itl_ms: Percentiles | None
    end_to_end_ms: Percentiles | None
    gap_ratio: Percentiles | None
    good_share: float | None
    goodput_per_second: float | None
    lag_ms: Percentiles | None
    visual_tokens: float | None
    kept_tokens: float | None


def summarise(
    requests: Sequence[Sent], seconds: float, ttft_slo_ms: float | None = None, itl_slo_ms: float | None = None
) -> Figures:
    """The figures of requests that took so many seconds together."""
    answered = [sent for sent in requests if not sent.error]
    limited = ttft_slo_ms is not None or itl_slo_ms is not None
    good = sum(sent.is_good(ttft_slo_ms, itl_slo_ms) for sent in requests) if limited else None
    told = [sent for sent in answered if sent.visual_tokens is not None and sent.kept_tokens is not None]
    return Figures(
        requests=len(requests),
        answered=len(answered),
        errors=dict(Counter(sent.error for sent in requests if sent.error).most_common()),
        requests_per_second=len(answered) / seconds,
        output_tokens_per_second=sum(sent.output_tokens for sent in answered) / seconds,
        tokens_by=" and ".join(sorted({"usage" if sent.by_usage else "chunks" for sent in answered}, reverse=True)),
        ttft_ms=Percentiles.of(sent.ttft_ms for sent in answered if sent.ttft_ms is not None),
        itl_ms=Percentiles.of(chain.from_iterable(sent.gaps_ms for sent in answered)),
        end_to_end_ms=Percentiles.of(sent.end_to_end_ms for sent in answered),
        gap_ratio=Percentiles.of(sent.gap_ratio for sent in answered if sent.gap_ratio is not None),
        good_share=None if good is None else good / len(requests),
        goodput_per_second=None if good is None else good / seconds,
        lag_ms=Percentiles.of(sent.lag_ms for sent in requests),
        visual_tokens=fmean(sent.visual_tokens or 0 for sent in told) if told else None,
        kept_tokens=fmean(sent.kept_tokens or 0 for sent in told) if told else None,
    )


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One load at one keep ratio.

    Attributes:
        kind: `open`, with a rate, or `closed`, with clients.
        value: requests sent a second, or clients.
        keep: share of the visual tokens that the requests asked for.
        seconds: from the first request to the last answer, the rounds together.
        figures: of all rounds together.
        memory: of the server; null where it is not known.
        generator_cpu_share: of one CPU that this generator took meanwhile.
        generator_token_us: CPU time of this generator for a chunk of text, in microseconds; null where none came.
        requests: each of them.
    """

    kind: Kind
    value: float
    keep: float
    seconds: float
    figures: Figures
    memory: ServerMemory | None
    generator_cpu_share: float
    generator_token_us: float | None
    requests: list[Sent]

    @property
    def load(self) -> Load:
        return Load(self.kind, self.value)


class BenchSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and how.

    Attributes:
        target: URL, or the bundle that was served.
        server: what it says it is.
        model: that the requests named.
        questions: what was asked.
        requests: of each point and round; null where time ended it.
        seconds: of each point and round; null where a number of requests ended it.
        rounds: that took turns.
        warm_up: requests that do not count.
        max_tokens: of each answer.
        ignore_eos: whether the server was asked to go on past the end of an answer.
        seed: of arrivals and questions.
        ttft_slo_ms, itl_slo_ms: limits of a good answer; null where there is none.
        encode: share of the visual tokens that foveate's vision tower was to compute, or `auto`; null where nothing was said.
        cpus: of the machine of the generator, that it may use.
        date: day, as YYYY-MM-DD.
        foveate_version: what measured it.
        remarks: what the figures need to be read with.
        error_examples: the first message of each kind of error.
    """

    target: str
    server: str
    model: str
    questions: str
    requests: int | None
    seconds: float | None
    rounds: int
    warm_up: int
    max_tokens: int
    ignore_eos: bool
    seed: int
    ttft_slo_ms: float | None
    itl_slo_ms: float | None
    encode: float | str | None
    cpus: int
    date: str
    foveate_version: str
    remarks: list[str]
    error_examples: dict[str, str]


class Benchmark(msgspec.Struct, frozen=True, tag_field="schema", tag="foveate.bench.1"):
    """Everything that one load test measured.

    Attributes:
        setting: of all points.
        points: closed loops first, by load and then by keep ratio.
    """

    setting: BenchSetting
    points: list[LoadPoint]

"""Figures for Prometheus, by names that dashboards know: `foveate:` with the stems of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from foveate.runtime import Answer
from foveate.serve.options import Served

if TYPE_CHECKING:
    from foveate.runtime.scheduler import EngineStats, Ticket

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_REQUEST_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
_GAUGES: Mapping[str, tuple[str, Callable[[EngineStats], float]]] = {
    "foveate:num_requests_running": ("Requests that have a slot", lambda stats: stats.running),
    "foveate:num_requests_waiting": (
        "Requests that wait, or whose pictures are being seen",
        lambda stats: stats.waiting + stats.preparing + stats.ready,
    ),
    "foveate:kv_cache_usage_perc": (
        "Share of the KV tokens in use, 0 to 1",
        lambda stats: stats.kv_tokens_used / stats.kv_tokens,
    ),
    "foveate:idle_seconds": ("Since anything moved while work waits", lambda stats: stats.idle_ms / 1e3),
}


class Metrics:
    """What a server counts.

    Args:
        served: the bundles, whose engines are asked when the figures are.
    """

    def __init__(self, served: Iterable[Served]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(tuple(served)))
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts that decoders saw")
        self._generation = self._counter("generation_tokens", "Tokens generated")
        self._reused = self._counter("prefix_reused_tokens", "Tokens of prompts whose keys and values were there already")
        self._visual = self._counter("visual_tokens", "Visual tokens before any were left out")
        self._kept = self._counter("visual_tokens_kept", "Visual tokens that decoders saw")
        self._success = self._counter("request_success", "Finished answers", "finished_reason")
        self._share = self._histogram(
            "visual_tokens_kept_share", "Share of the visual tokens of a request that stayed", _SHARES
        )
        self._first = self._histogram("time_to_first_token_seconds", "From the arrival to the first token", _FIRST_TOKEN_S)
        self._between = self._histogram("inter_token_latency_seconds", "Each token after the first", _TOKEN_S)
        self._whole = self._histogram("e2e_request_latency_seconds", "From the arrival to the last token", _REQUEST_S)
        self._queue = self._histogram("request_queue_time_seconds", "Waiting", _REQUEST_S)
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "Everything between waiting and the first token", _REQUEST_S
        )
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the last", _REQUEST_S)
        self._http = Counter("foveate:http_requests", "Answers of every endpoint", ("path", "status"), registry=self._registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"foveate:{name}", says, ("model_name", *labels), registry=self._registry)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"foveate:{name}", says, ("model_name",), buckets=buckets, registry=self._registry)

    def count_http(self, path: str, status: int) -> None:
        """Notes an answer of an endpoint."""
        self._http.labels(path, str(status)).inc()

    def count_answer(self, model: str, ticket: Ticket, answer: Answer) -> None:
        """Notes a finished answer. Its times are those that its reader saw, stalls among them."""
        selection = answer.selection
        kept = len(selection.keep_indices)
        self._prompt.labels(model).inc(answer.prompt_tokens)
        self._generation.labels(model).inc(len(answer.tokens))
        self._reused.labels(model).inc(answer.reused_tokens)
        self._visual.labels(model).inc(selection.num_visual_tokens)
        self._kept.labels(model).inc(kept)
        self._success.labels(model, answer.finish_reason).inc()
        if selection.num_visual_tokens:
            self._share.labels(model).observe(kept / selection.num_visual_tokens)
        assert ticket.finished_at is not None
        first = (ticket.first_token_at or ticket.finished_at) - ticket.submitted
        whole = ticket.finished_at - ticket.submitted
        queue = answer.timings.queue_ms / 1e3
        self._first.labels(model).observe(first)
        self._whole.labels(model).observe(whole)
        self._queue.labels(model).observe(queue)
        self._prefill.labels(model).observe(max(0.0, first - queue))
        self._decode.labels(model).observe(whole - first)
        between = self._between.labels(model)
        for seconds in ticket.gaps_s:
            between.observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' form."""
        return generate_latest(self._registry)

    def names(self) -> Mapping[str, str]:
        """What there is: names and what they say."""
        found: Iterable[Metric] = self._registry.collect()
        return {metric.name: metric.documentation for metric in found}


class _Engines(Collector):
    """What engines do at the moment they are asked."""

    def __init__(self, served: tuple[Served, ...]) -> None:
        self._served = served

    def describe(self) -> Iterable[Metric]:
        """Nothing before it is asked."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """A gauge for each fact, a row for each bundle."""
        stats: list[tuple[str, EngineStats]] = [(one.name, one.engine.stats()) for one in self._served]
        for name, (says, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, says, labels=("model_name",))
            for model, facts in stats:
                gauge.add_metric((model,), value(facts))
            yield gauge

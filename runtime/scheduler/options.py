"""What an engine is told, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from foveate.engines import GraphSpec, OptionError, RequestError
from foveate.engines.format.precisions import INT8
from foveate.runtime.values import number, share, whole

DEFAULT_SLOT_TOKENS = 4096


@dataclass(frozen=True)
class EngineOptions:
    """How an engine shares a bundle between requests.

    Attributes:
        slots: sequences that decode side by side.
        tokens_per_slot: most tokens of one request, pruned prompt and answer together; None takes 4,096, or what the model
            takes where that is less.
        max_waiting: requests that may wait; one more is refused with a `BusyError`.
        prefill_tokens: most tokens of a prompt that are read between two decode steps of the others. It is fewer where so many
            would take longer than a step.
        prefix_reuse: keep the keys and values of finished requests until their slot is needed, for prompts that begin alike.
        ttft_slo_ms: the time to first token that flexible requests give up visual tokens for; None for none. It needs
            measured latencies (`foveate profile --save`).
        min_retained: how many of the right answers stay right at least, of a flexible request that does not say; see
            `Request.min_retained`.

    Raises:
        OptionError: a value out of its range.
    """

    slots: int = 8
    tokens_per_slot: int | None = None
    max_waiting: int = 64
    prefill_tokens: int = 256
    prefix_reuse: bool = True
    ttft_slo_ms: float | None = None
    min_retained: float = 0.97

    def __post_init__(self) -> None:
        for name, least in (("slots", 1), ("max_waiting", 0), ("prefill_tokens", 1)):
            _check(name, getattr(self, name), partial(whole, least=least))
        if self.tokens_per_slot is not None:
            _check("tokens_per_slot", self.tokens_per_slot, lambda name, value: whole(name, value, 2))
        if self.ttft_slo_ms is not None:
            _check("ttft_slo_ms", self.ttft_slo_ms, lambda name, value: number(name, value, lambda ms: ms > 0, "above 0"))
        _check("min_retained", self.min_retained, share)


def _check(name: str, value: object, check: Callable[[str, object], object]) -> None:
    """Raises OptionError where a request would raise RequestError."""
    try:
        check(name, value)
    except RequestError as error:
        raise OptionError(str(error), options=(name,)) from error


@dataclass(frozen=True)
class EngineStats:
    """What an engine does at a moment.

    Attributes:
        waiting: requests that nothing was done for yet.
        preparing: whose pictures are opened, seen and scored.
        ready: that wait for a slot.
        running: that have one.
        slots: that there are.
        kv_tokens_used: tokens whose keys and values running requests hold.
        kv_tokens: that fit.
        steps: decode steps so far.
        turns: so far.
        idle_ms: since anything went on while work waits; 0 where none waits.
        finished: requests by how they ended: `eos`, `stop`, `length`, `cancelled`, `deadline`, `error`.
        reused_tokens: tokens of prompts that were not read anew.
    """

    waiting: int
    preparing: int
    ready: int
    running: int
    slots: int
    kv_tokens_used: int
    kv_tokens: int
    steps: int
    turns: int
    idle_ms: float
    finished: Mapping[str, int]
    reused_tokens: int = 0


def check_precision(decoder: GraphSpec, slots: int) -> None:
    """
    Raises:
        OptionError: the answers of the decoder would hang on what runs beside them. In int8 its activations are scaled over
            all rows of a run at once.
    """
    if decoder.precision == INT8 and slots > 1:
        raise OptionError(
            f"graph '{decoder.name}' is int8, where an answer hangs on those beside it, and there are {slots} slots. Export "
            "the decoder with '--decoder int4' or fp32, or take one slot.",
            options=("slots",),
        )

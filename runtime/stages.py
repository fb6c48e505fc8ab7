"""The stages of a request, in their order. A new one is a field of `Timings` here and a `with stopwatch(...)` in the pipeline:
JSON, profile, charts and tables read this list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from time import perf_counter
from types import MappingProxyType
from typing import Any, Literal

LatencyLine = Literal["score", "prefill"]
"""A line of `LatencyModel`: milliseconds by tokens."""


@dataclass(frozen=True)
class Stage:
    """A stage, as `STAGES` has it.

    Attributes:
        name: `with stopwatch(name)` measures it.
        does: in a few words.
        colour: in charts.
        column: heading of its column in short tables, which it may share with others; empty for its name.
        latency: which measured latency it is part of; None where it is over before a budget is planned.
        first_token: whether it is part of the time to first token; else it comes with every later token.
    """

    name: str
    does: str
    colour: str = ""
    column: str = ""
    latency: LatencyLine | None = None
    first_token: bool = True

    @property
    def key(self) -> str:
        """Its field of `Timings`, and its name in JSON and CSV."""
        return f"{self.name}_ms"

    @property
    def heading(self) -> str:
        """Of its column in short tables."""
        return self.column or self.name


def _stage(does: str, colour: str, column: str = "", latency: LatencyLine | None = None) -> Any:
    """A field of `Timings`: 0 where the stage is left out."""
    return field(default=0.0, metadata={"does": does, "colour": colour, "column": column, "latency": latency})


@dataclass(frozen=True)
class Timings:
    """Wall time per stage in milliseconds.

    In a batch, `embed_ms`, `prefill_ms` and `decode_ms` are those of the whole batch.
    """

    queue_ms: float = _stage("waiting for others, in an engine", "#c9ced6", column="prepare")
    preprocess_ms: float = _stage("opening images and videos, template, tokens", "#9aa3ad", column="prepare")
    glance_ms: float = _stage("the vision graph over small pictures; 0 without `encode`", "#7ba7e0", column="vision")
    vision_ms: float = _stage("the vision graph", "#1d5fbf")
    score_ms: float = _stage("the score graph; 0 where it was bypassed", "#e07a1f", latency="score")
    select_ms: float = _stage("choosing tokens and dropping the others", "#f3b562", column="score", latency="score")
    embed_ms: float = _stage("the embed graph over the prompt", "#8fd0a9", latency="prefill")
    prefill_ms: float = _stage("the decoder over the prompt", "#2a9d5c", latency="prefill")
    decode_ms: tuple[float, ...] = field(default=(), metadata={"does": "each token after the first", "first_token": False})

    def total(self, stages: Iterable[Stage]) -> float:
        """Milliseconds of some stages of the first token together."""
        taken: list[float] = [getattr(self, stage.key) for stage in stages]
        return sum(taken)

    @property
    def ttft_ms(self) -> float:
        """Time to first token: every stage up to the prefill."""
        return self.total(FIRST_TOKEN)

    @property
    def tpot_ms(self) -> float:
        """Mean time per output token after the first; 0 where there is none."""
        return sum(self.decode_ms) / len(self.decode_ms) if self.decode_ms else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as lists and numbers, ready for JSON."""
        return {**asdict(self), "decode_ms": list(self.decode_ms), "ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms}


STAGES = tuple(Stage(entry.name.removesuffix("_ms"), **entry.metadata) for entry in fields(Timings))
"""All of them."""
FIRST_TOKEN = tuple(stage for stage in STAGES if stage.first_token)
"""Those whose sum is the time to first token."""
TOWER = tuple(stage for stage in FIRST_TOKEN if stage.heading == "vision")
"""Of these, runs of the vision graph."""
ENCODING = tuple(stage for stage in FIRST_TOKEN if stage.latency is None)
"""Of these, what no budget changes: `Pipeline.encode` runs them."""
ANSWERING = tuple(stage for stage in FIRST_TOKEN if stage.latency is not None)
"""The others, which hang on the number of visual tokens."""
_KEYS = {stage.name: stage.key for stage in FIRST_TOKEN}


def columns(heading: Callable[[Stage], str]) -> dict[str, list[Stage]]:
    """The stages of the first token by the column of a table that they stand in."""
    found: dict[str, list[Stage]] = {}
    for stage in FIRST_TOKEN:
        found.setdefault(heading(stage), []).append(stage)
    return found


class Stopwatch:
    """Milliseconds per stage: `with stopwatch("vision"): ...`; a stage that runs twice has the sum.

    Attributes:
        stage_ms: by field of `Timings`; it may go on from earlier ones.
    """

    def __init__(self, stage_ms: Mapping[str, float] = MappingProxyType({})) -> None:
        self.stage_ms = dict(stage_ms)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        key, start = _KEYS[name], perf_counter()
        yield
        self.stage_ms[key] = self.stage_ms.get(key, 0.0) + 1e3 * (perf_counter() - start)

"""What to send, how often, and what counts as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from foveate.engines import OptionError, RequestError
from foveate.engines.errors import shorten
from foveate.runtime.encoding import Encode, check_encode

Kind = Literal["open", "closed"]


class Load(NamedTuple):
    """Open: so many requests a second, sent whether or not the earlier ones are answered. Closed: so many clients, each with
    one request after the other."""

    kind: Kind
    value: float

    def __str__(self) -> str:
        if self.kind == "open":
            return f"{self.value:g} a second"
        return f"{self.value:g} client{'' if self.value == 1 else 's'}"


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        rates: requests a second of an open loop, with Poisson arrivals.
        clients: numbers of clients of a closed loop.
        keeps: shares of the visual tokens that requests ask a foveate server to keep.
        encode: what requests ask a foveate server's vision tower to compute, see `Request.encode`; None says nothing.
        requests: of each point and round.
        seconds: how long new requests are sent, in place of a number of them.
        rounds: each measures every point once, so that a slow moment of the machine does not hit one point alone.
        warm_up: requests before them, that do not count.
        data: folder with a `questions.jsonl`; None draws pictures.
        image_size: width and height in pixels of the drawn pictures.
        text_only: share of the requests that have no picture.
        max_tokens: of each answer.
        ignore_eos: ask the server to go on past the end of an answer.
        seed: of arrivals, pictures, and of which requests are text only.
        timeout_s: of a request, from when it is due.
        ttft_slo_ms: most time to the first token of a good answer; None sets no limit.
        itl_slo_ms: most mean time between the chunks of a good answer; None sets no limit.

    Raises:
        OptionError: a value that nothing can be measured with.
    """

    rates: tuple[float, ...] = ()
    clients: tuple[int, ...] = (1, 4)
    keeps: tuple[float, ...] = (1.0,)
    requests: int = 32
    seconds: float | None = None
    rounds: int = 1
    warm_up: int = 2
    data: Path | None = None
    image_size: tuple[int, int] = (448, 448)
    text_only: float = 0.0
    max_tokens: int = 32
    ignore_eos: bool = False
    seed: int = 0
    timeout_s: float = 300.0
    ttft_slo_ms: float | None = None
    itl_slo_ms: float | None = None
    encode: Encode | None = None

    def __post_init__(self) -> None:
        usable = {
            "rates": (all(0 < rate <= 10_000 for rate in self.rates), "rates above 0 and up to 10,000"),
            "clients": (all(1 <= number <= 10_000 for number in self.clients), "at least 1 and at most 10,000"),
            "keeps": (bool(self.keeps) and all(0 < keep <= 1 for keep in self.keeps), "ratios above 0 and up to 1"),
            "requests": (self.requests >= 1, "at least 1"),
            "seconds": (self.seconds is None or 0 < self.seconds < float("inf"), "more than 0"),
            "rounds": (self.rounds >= 1, "at least 1"),
            "warm_up": (self.warm_up >= 1, "at least 1"),
            "image_size": (all(1 <= side <= 10_000 for side in self.image_size), "sides of 1 to 10,000 pixels"),
            "text_only": (0 <= self.text_only <= 1, "a share from 0 to 1"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
            "timeout_s": (0 < self.timeout_s < float("inf"), "more than 0"),
            "ttft_slo_ms": (self.ttft_slo_ms is None or self.ttft_slo_ms > 0, "more than 0"),
            "itl_slo_ms": (self.itl_slo_ms is None or self.itl_slo_ms > 0, "more than 0"),
        }
        for name, (fits, expected) in usable.items():
            if not fits:
                raise OptionError(
                    f"{name} is {shorten(_words(getattr(self, name)))}, expected {expected}. Change it.", options=(name,)
                )
        try:
            check_encode(self.encode)
        except RequestError as error:
            raise OptionError(str(error), options=("encode",)) from error
        if not self.loads:
            raise OptionError(
                "there is neither a rate nor a number of clients. Name one of them.", options=("rates", "clients")
            )

    @property
    def loads(self) -> tuple[Load, ...]:
        """Closed, then open, each without repeats and ascending."""
        closed = tuple(Load("closed", number) for number in sorted(set(self.clients)))
        return closed + tuple(Load("open", rate) for rate in sorted(set(self.rates)))

    @property
    def ratios(self) -> tuple[float, ...]:
        """Without repeats, descending."""
        return tuple(sorted(set(self.keeps), reverse=True))


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

"""What a peer is to do under load. It needs no library, as `worker`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadJob:
    """What to measure.

    Attributes:
        model: folder of the model.
        inputs: `.npz` with `pictures`, `[requests + 1, height, width, 3]` uint8; the first one warms up.
        question: about each of them.
        keep: share of the visual tokens.
        clients: at once.
        new_tokens: of each answer.
        threads: of the CPU.
    """

    model: str
    inputs: str
    question: str
    keep: float
    clients: int
    new_tokens: int
    threads: int

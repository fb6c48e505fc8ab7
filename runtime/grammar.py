"""What an answer has to be, token by token. The library that reads a grammar is the caller's; these are its verbs."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class GrammarState(Protocol):
    """How far one answer has come."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but what ends an answer."""
        ...

    def mask(self, logits: np.ndarray) -> None:
        """Makes `logits [vocab_size]` float32 -inf, in place, for each token that may not follow. A token that ends an answer
        may follow where the answer is whole."""
        ...

    def accept(self, token: int) -> None:
        """Takes in a token that was drawn from masked logits, also the one that ends the answer."""
        ...


class Grammar(Protocol):
    """What answers have to be; any number of them, in any threads."""

    def start(self) -> GrammarState:
        """The state before the first token of an answer."""
        ...

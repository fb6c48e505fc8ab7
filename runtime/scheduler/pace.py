"""How much of a prompt is read between two steps of others: about as long as a step takes."""

from __future__ import annotations

STRETCH = 1.0
"""Of a step, what a piece may take: then a token comes after twice the time at most."""
LEAST_TOKENS = 16
"""Of a piece: each has work of its own, beside that of its tokens."""
_FIRST_TOKENS = 32
_MEMORY = 0.7
"""Of the last figure that stays with each new one."""


class Pace:
    """What steps and pieces were seen to take. For one thread.

    Args:
        most: tokens of a piece, whatever it takes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._step_s = self._token_s = 0.0

    @property
    def tokens(self) -> int:
        """Of the next piece."""
        if not self._step_s or not self._token_s:
            return min(self._most, _FIRST_TOKENS)
        return min(self._most, max(LEAST_TOKENS, int(STRETCH * self._step_s / self._token_s)))

    def stepped(self, seconds: float) -> None:
        """A decode step took so long."""
        self._step_s = _mean(self._step_s, seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """A piece of so many tokens took so long."""
        self._token_s = _mean(self._token_s, seconds / tokens)


def _mean(known: float, found: float) -> float:
    return _MEMORY * known + (1 - _MEMORY) * found if known else found

"""Shares, ratios and differences of right answers with their 95 % intervals, all of them closed forms that hold at the edges.

A share of 12 out of 12 is not known to be 1, and two selectors that agree on 12 questions are not known to be equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_Z95 = 1.959963984540054
"""97.5 % point of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: int, total: int) -> Estimate:
    """The share `right / total` with its Wilson score interval.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), pp. 209-212.
    """
    return _wilson(right, total, _Z95)


def stay(before: np.ndarray, after: np.ndarray) -> Estimate | None:
    """Of the answers that were right before pruning the share that are right after it, with its Wilson score interval.

    Args:
        before: bool `[samples]`, right at keep 1.
        after: bool `[samples]`, right with fewer tokens.

    Returns:
        None where nothing was right before.
    """
    return wilson(int((before & after).sum()), int(before.sum())) if before.any() else None


def retained(before: np.ndarray, after: np.ndarray) -> Estimate | None:
    """Right answers after pruning as a share of those before: a net ratio, in which an answer that becomes right makes up for
    one that becomes wrong. With the interval of Bonett and Price for a ratio of paired proportions.

    Bonett & Price, "Confidence intervals for a ratio of binomial proportions based on paired data", Statistics in Medicine 25
    (2006), pp. 3039-3047; the form is that of Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014), pp. 2850-2875.

    Args:
        before: bool `[samples]`, right at keep 1.
        after: bool `[samples]`, right with fewer tokens.

    Returns:
        None where nothing was right before.
    """
    if not before.any():
        return None
    either, changed = int((before | after).sum()), int((before ^ after).sum())
    first, other = int(before.sum()), int(after.sum())

    def spread(right: int) -> float:
        return math.sqrt((1 - (right + 1) / (either + 2)) / (right + 1))

    paired = math.sqrt((changed + 2) / ((first + 1) * (other + 1)))
    z = _Z95 * paired / (spread(first) + spread(other))
    shares = _wilson(first, either, z), _wilson(other, either, z)
    return Estimate(other / first, shares[1].low / shares[0].high, shares[1].high / shares[0].low)


def difference_points(first: np.ndarray, other: np.ndarray) -> Estimate:
    """Accuracy of `other` minus that of `first` in percentage points, with Newcombe's interval for paired proportions.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data", Statistics
    in Medicine 17 (1998), pp. 2635-2650, method 10.

    Args:
        first: bool `[samples]`, right with the first selector.
        other: bool `[samples]`, right with the other one.
    """
    one, two = wilson(int(other.sum()), len(other)), wilson(int(first.sum()), len(first))
    correlation = _correlation(other, first)

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up**2 + down**2 - 2 * correlation * up * down))

    value = one.value - two.value
    low = value - reach(one.value - one.low, two.high - two.value)
    high = value + reach(one.high - one.value, two.value - two.low)
    return Estimate(100 * value, 100 * low, 100 * high)


def _wilson(right: int, total: int, z: float) -> Estimate:
    share, spread = right / total, z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding leaves neither range
    return Estimate(share, low, high)


def _correlation(first: np.ndarray, other: np.ndarray) -> float:
    """Of two series of answers, with Newcombe's correction for continuity; 0 where one of them is constant."""
    total, both = len(first), int((first & other).sum())
    ones = int(first.sum()), int(other.sum())
    margins = math.prod(count * (total - count) for count in ones)
    if not margins:
        return 0.0
    surplus = both * (total - sum(ones) + both) - (ones[0] - both) * (ones[1] - both)
    return (max(0.0, surplus - total / 2) if surplus > 0 else float(surplus)) / math.sqrt(margins)

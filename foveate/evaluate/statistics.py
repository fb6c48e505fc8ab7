"""Shares and differences with their 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0
"""Of the bootstrap."""
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
    share, spread = right / total, _Z95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding leaves neither range
    return Estimate(share, low, high)


def retained(before: np.ndarray, after: np.ndarray) -> Estimate | None:
    """Right answers after pruning as a share of those before, with its paired bootstrap interval.

    Args:
        before: bool `[samples]`, right at keep 1.
        after: bool `[samples]`, right with fewer tokens.

    Returns:
        None where nothing was right before.
    """
    if not before.any():
        return None
    _, only_after, only_before, both = _resample(before, after)
    was_right = both + only_before
    share = (both + only_after)[was_right > 0] / was_right[was_right > 0]
    return _estimate(after.sum() / before.sum(), share)


def difference_points(first: np.ndarray, other: np.ndarray) -> Estimate:
    """Accuracy of `other` minus that of `first` in percentage points, with its paired bootstrap interval.

    Args:
        first: bool `[samples]`, right with the first selector.
        other: bool `[samples]`, right with the other one.
    """
    _, only_other, only_first, _ = _resample(first, other)
    points = 100 / len(first)
    return _estimate(points * (int(other.sum()) - int(first.sum())), points * (only_other - only_first))


def _resample(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many samples are right in neither, only in other, only in first and in both: `[4, RESAMPLES]` int64.

    Drawing samples with replacement draws these four counts from a multinomial distribution, and no figure here depends on
    more than them. Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    counts = np.bincount(2 * first.astype(np.int64) + other, minlength=4)
    return np.random.default_rng(SEED).multinomial(len(first), counts / len(first), RESAMPLES).T


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(float(value), float(low), float(high))

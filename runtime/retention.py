"""What a budget is known to cost: the retention curve of the bundle's scorer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foveate.engines import RequestError, RetentionPoint, ScorerEntry
from foveate.runtime.budget import Budget
from foveate.runtime.select import Selection

FEWEST_QUESTIONS = 100
"""Of a curve that a floor may be held against: with 100 answers right and all of them staying, 96.3 % stay for certain."""
_ROUNDING = 1e-9
"""What the digits of a measured share may lose on their way here."""
_MEASURE = "Measure one with 'foveate export CHECKPOINT -o BUNDLE --calibrate DATA'"


def check_floor(min_retained: float | None, selection: Selection, scorer: ScorerEntry, encoded: int | None = None) -> None:
    """Refuses a selection with which less than `min_retained` of the right answers may stay, as the bundle's curve has it.

    The curve is the lower end of the 95 % interval of what stays at each measured keep ratio, a straight line in between. With
    the whole tower it is 1 at keep 1. With a part of it the curve is that of the largest measured `encode` that is not above
    what the tower computed, and is flat above its largest keep ratio. A selection that keeps everything passes.

    Args:
        min_retained: the floor; None for none.
        selection: among all visual tokens.
        scorer: of the bundle.
        encoded: visual tokens that the tower computed; None for all.

    Raises:
        RequestError: the curve is below the floor at this number of tokens, does not reach down to it, is missing, was
            measured with too few questions, or not with this selector.
    """
    kept, total = len(selection.keep_indices), selection.num_visual_tokens
    if min_retained is None or kept == total:
        return
    _check_selector(min_retained, selection.selector, scorer)
    encode = None if encoded is None else _find_encode(min_retained, encoded, total, scorer)
    of = "" if encode is None else f" with encode {encode:g}"
    curve = _check_measured(min_retained, scorer.curve(encode), of) | ({1.0: 1.0} if encode is None else {})
    points = {_tokens(keep, total): share for keep, share in curve.items()}
    fewest = min(points)
    retained = float(np.interp(kept, list(points), list(points.values())))
    if kept >= fewest and retained + _ROUNDING >= min_retained:
        return
    outcome = (
        "is below what was measured" if kept < fewest else f"retains at least about {100 * retained:.2f} % of the right answers"
    )
    known = ", ".join(f"{100 * share:.1f} % at keep {keep:g}" for keep, share in curve.items())
    enough = next((count for count, share in points.items() if count > kept and share + _ROUNDING >= min_retained), None)
    remedy = "Raise encode" if enough is None else f"Keep at least {enough} tokens"
    raise RequestError(
        f"keeping {kept} of {total} visual tokens {outcome}, and min_retained is {min_retained:g}. "
        f"The bundle's curve{of} has at least {known}. {remedy}, or lower min_retained."
    )


def _tokens(ratio: float, total: int) -> int:
    """In tokens, not in shares: 0.25 of 77 are 19, a little less than 0.25 and yet what was measured there."""
    return Budget(ratio=ratio).count(np.empty(total))


def _find_encode(min_retained: float, encoded: int, total: int, scorer: ScorerEntry) -> float:
    """The largest measured share that is not above what the tower computed."""
    if not scorer.retention:
        raise _no_curve(min_retained)
    if not scorer.encodes:
        raise RequestError(
            f"min_retained is {min_retained:g}, and this bundle's curve was measured with the whole tower alone. {_MEASURE}, "
            "on pictures that are large enough for a glance, or leave out encode or min_retained.",
            options=("encode", "min_retained"),
        )
    below = [share for share in scorer.encodes if _tokens(share, total) <= encoded]
    if not below:
        least = scorer.encodes[0]
        raise RequestError(
            f"the tower computed {encoded} of {total} visual tokens, which is below what was measured, encode {least:g}, and "
            f"min_retained is {min_retained:g}. Set encode to {least:g} or more, or leave out min_retained.",
            options=("encode", "min_retained"),
        )
    return below[-1]


def _check_selector(min_retained: float, selector: str, scorer: ScorerEntry) -> None:
    measured = scorer.default_selector
    if selector != measured:
        raise RequestError(
            f"min_retained is {min_retained:g}, and a bundle's curve is measured with selector '{measured}', not '{selector}'. "
            "Leave out select or min_retained."
        )


def _check_measured(min_retained: float, curve: Sequence[RetentionPoint], of: str) -> dict[float, float]:
    """Keep ratio to what stays for certain, ascending."""
    if not curve:
        raise _no_curve(min_retained)
    questions = min(point.questions for point in curve)
    if questions < FEWEST_QUESTIONS:
        raise RequestError(
            f"min_retained is {min_retained:g}, and this bundle's curve{of} was measured with {questions} questions, expected "
            f"at least {FEWEST_QUESTIONS}. Export it with more, or leave out min_retained."
        )
    return dict(sorted((point.keep, point.share[1]) for point in curve))


def _no_curve(min_retained: float) -> RequestError:
    return RequestError(
        f"min_retained is {min_retained:g}, and this bundle has no retention curve. {_MEASURE}, or leave out min_retained."
    )

"""What a budget is known to cost: the retention curve of the bundle's scorer."""

from __future__ import annotations

import numpy as np

from foveate.engines import RequestError, ScorerEntry
from foveate.runtime.budget import Budget
from foveate.runtime.select import Selection

FEWEST_QUESTIONS = 100
"""Of a curve that a floor may be held against: with 100 answers right and all of them staying, 96.3 % stay for certain."""
_ROUNDING = 1e-9
"""What the digits of a measured share may lose on their way here."""


def check_floor(min_retained: float | None, selection: Selection, scorer: ScorerEntry) -> None:
    """Refuses a selection with which less than `min_retained` of the right answers may stay, as the bundle's curve has it.

    The curve is the lower end of the 95 % interval of what stays at each measured keep ratio, a straight line in between, and 1
    at keep 1. A selection that keeps everything passes.

    Raises:
        RequestError: the curve is below the floor at this number of tokens, does not reach down to it, is missing, was
            measured with too few questions, or not with this selector.
    """
    kept, total = len(selection.keep_indices), selection.num_visual_tokens
    if min_retained is None or kept == total:
        return
    _check_measured(min_retained, selection.selector, scorer)
    curve = dict(sorted((point.keep, point.share[1]) for point in scorer.retention)) | {1.0: 1.0}
    # In tokens, not in shares: keep 0.25 of 77 are 19, a little less than 0.25 and yet what was measured there.
    points = {Budget(ratio=keep).count(np.empty(total)): share for keep, share in curve.items()}
    fewest = min(points)
    retained = float(np.interp(kept, list(points), list(points.values())))
    if kept >= fewest and retained + _ROUNDING >= min_retained:
        return
    outcome = (
        "is below what was measured" if kept < fewest else f"retains at least about {100 * retained:.2f} % of the right answers"
    )
    known = ", ".join(f"{100 * share:.1f} % at keep {keep:g}" for keep, share in curve.items())
    enough = next(count for count, share in points.items() if count > kept and share + _ROUNDING >= min_retained)
    raise RequestError(
        f"keeping {kept} of {total} visual tokens {outcome}, and min_retained is {min_retained:g}. "
        f"The bundle's curve has at least {known}. Keep at least {enough} tokens, or lower min_retained."
    )


def _check_measured(min_retained: float, selector: str, scorer: ScorerEntry) -> None:
    measured = scorer.default_selector
    if selector != measured:
        raise RequestError(
            f"min_retained is {min_retained:g}, and a bundle's curve is measured with selector '{measured}', not '{selector}'. "
            "Leave out select or min_retained."
        )
    if not scorer.retention:
        raise RequestError(
            f"min_retained is {min_retained:g}, and this bundle has no retention curve. "
            "Measure one with 'foveate export CHECKPOINT -o BUNDLE --calibrate DATA', or leave out min_retained."
        )
    questions = min(point.questions for point in scorer.retention)
    if questions < FEWEST_QUESTIONS:
        raise RequestError(
            f"min_retained is {min_retained:g}, and this bundle's curve was measured with {questions} questions, expected at "
            f"least {FEWEST_QUESTIONS}. Export it with more, or leave out min_retained."
        )

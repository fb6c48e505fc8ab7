"""What a budget is known to cost: the retention curve of the bundle's scorer."""

from __future__ import annotations

import numpy as np

from foveate.engines import RequestError, ScorerEntry
from foveate.runtime.select import Selection

_REMEASURE = "Export it with --scorer FILE --calibrate DATA, or drop --min-retained."


def check_floor(min_retained: float | None, selection: Selection, scorer: ScorerEntry) -> None:
    """Refuses a selection that retains less than `min_retained` of the right answers, as the bundle's curve has it.

    Raises:
        RequestError: the curve is below the floor at this share of kept tokens, does not reach down to it, or was not
            measured for this selector.
    """
    kept, total = len(selection.keep_indices), selection.num_visual_tokens
    if min_retained is None or kept == total:
        return
    if not scorer.retention:
        raise RequestError(f"min_retained is {min_retained:g}, and this bundle has no retention curve. {_REMEASURE}")
    if selection.selector not in ("learned", "attention") or (selection.selector == "learned") != (scorer.kind != "attention"):
        raise RequestError(
            f"min_retained is {min_retained:g}, and the bundle's retention curve is not of selector '{selection.selector}'. "
            "Drop --select or --min-retained."
        )
    curve = sorted({(point.keep, point.retained) for point in scorer.retention} | {(1.0, 1.0)})
    keeps, retained = (np.array(column) for column in zip(*curve, strict=True))
    keep = kept / total
    said = ", ".join(f"{share:.1%} at keep {at:g}" for at, share in curve)
    if keep < keeps[0]:
        raise RequestError(
            f"keeping {kept} of {total} visual tokens ({keep:.3g}) is below what was measured ({said}), and min_retained is "
            f"{min_retained:g}. Keep more, or calibrate with lower ratios."
        )
    expected = float(np.interp(keep, keeps, retained))
    if expected < min_retained:
        raise RequestError(
            f"keeping {kept} of {total} visual tokens ({keep:.3g}) retains about {expected:.1%} of the right answers ({said}), "
            f"below min_retained {min_retained:g}. Keep more."
        )

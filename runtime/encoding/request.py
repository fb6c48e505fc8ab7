"""How much the vision tower may compute: what a request asks for."""

from __future__ import annotations

from typing import Literal

import numpy as np

from foveate.engines import RequestError
from foveate.engines.errors import shown
from foveate.runtime.budget import Budget
from foveate.runtime.values import share, unusable, whole

AUTO: Literal["auto"] = "auto"
Encode = float | Literal["auto"]
"""Share of the visual tokens that the tower may compute, 0 < share <= 1; `auto` takes what is least work: all of them, those
that repeat no others, or what the budget keeps, after a glance."""
_MOST_TOLERANCE = 255


def check_encode(value: object) -> Encode | None:
    """`Request.encode`, settled.

    Raises:
        RequestError: it is neither a share nor `auto`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value == AUTO:
            return AUTO
        fact = f"encode is {shown(value)}, expected a share above 0, up to 1, or auto"
        raise RequestError(f"{fact}. Use 0.25.", options=("encode",))
    return share("encode", value, "Use 0.25 for a quarter of the visual tokens, or auto.")


def check_redundancy(value: object) -> int | None:
    """`Request.redundancy`, settled.

    Raises:
        RequestError: it is no difference of pixel values.
    """
    if value is None:
        return None
    remedy = "Use 0 for equal pixels alone."
    tolerance = whole("redundancy", value, 0, remedy)
    if tolerance > _MOST_TOLERANCE:
        raise unusable("redundancy", value, f"a whole number from 0 to {_MOST_TOLERANCE}", remedy)
    return tolerance


def count_tokens(encode: Encode, budget: Budget, total: int) -> int | str:
    """How many visual tokens the tower may compute; or why it computes all.

    Raises:
        RequestError: the budget keeps more than that.
    """
    kept = budget.count(np.empty(total)) if budget.ratio is not None or budget.tokens is not None else None
    if encode == AUTO:
        return kept if kept is not None else "no share or number of tokens is kept that would say how many are enough"
    allowed = Budget(ratio=encode).count(np.empty(total))
    if kept is not None and kept > allowed:
        raise RequestError(
            f"the budget keeps {kept} visual tokens, the tower may compute {allowed} of {total}. Keep fewer, or raise encode.",
            options=("encode", "keep"),
        )
    return allowed

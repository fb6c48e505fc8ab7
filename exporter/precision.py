"""Which graphs of a bundle compute in which precision."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.engines import OptionError
from foveate.engines.format.names import DECODER, DECODER_PREFILL, DECODER_STANDARD, EMBED, SCORE, VISION, VISION_STANDARD
from foveate.engines.format.precisions import EXPORTED, FP32, HALVES, INT4, INT8, PARTS, either

PRECISIONS = EXPORTED
"""Of a bundle. Others are those of engines, which `foveate build` chooses: ONNX Runtime's CPU computes in none of them."""


def plan_precisions(precision: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Graph -> precision of its matrices, for every graph of the bundle.

    The decoder in `int4` is two graphs: the prefill, in which many rows meet a matrix, is fastest in `int8`, and what runs one
    token at a time in 4 bits. `score` stays in fp32: it has two small matrices, and which tokens stay hangs on them. A
    quantised part has no graph of standard operators.

    Args:
        precision: of the whole.
        parts: of `PARTS`, those that differ.

    Raises:
        OptionError: there is no such part or precision.
    """
    if precision not in PRECISIONS:
        raise OptionError(
            f"precision '{precision}' is not one of a bundle, choose one of {', '.join(PRECISIONS)}. For engines in "
            f"{either(HALVES)} export in {FP32} and build them in that precision.",
            options=("precision",),
        )
    for part, chosen in parts.items():
        if part not in PARTS or chosen not in PARTS[part]:
            choices = "; ".join(f"{name}: {', '.join(values)}" for name, values in PARTS.items())
            message = f"precision '{chosen}' of part '{part}' is not supported. Choose one of {choices}."
            raise OptionError(message, options=("parts",))
    vision = parts.get(VISION, FP32 if precision == FP32 else INT8)
    decoder = parts.get(DECODER, precision)
    return {
        VISION: vision,
        **({VISION_STANDARD: FP32} if vision == FP32 else {}),
        SCORE: FP32,
        EMBED: FP32 if decoder == FP32 else INT8,
        DECODER: decoder,
        **({DECODER_STANDARD: FP32} if decoder == FP32 else {}),
        **({DECODER_PREFILL: INT8} if decoder == INT4 else {}),
    }


FP32_GRAPHS = plan_precisions(FP32, {})
"""The graphs of a bundle that is not quantised, each with its precision."""

"""Which graphs of a bundle compute in which precision."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.engines import DECODER_PREFILL, OptionError

PRECISIONS = ("fp32", "int8", "int4")
"""Of a bundle. fp16 and bf16 are those of engines, which `foveate build` chooses: ONNX Runtime's CPU computes in neither."""
PARTS = {"vision": ("fp32", "int8"), "decoder": PRECISIONS}
"""Parts of a model whose precision can be chosen on its own, and the choices."""


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
            f"precision '{precision}' is not one of a bundle, choose one of {', '.join(PRECISIONS)}. For engines in fp16 or "
            "bf16 export in fp32 and build them in that precision.",
            options=("precision",),
        )
    for part, chosen in parts.items():
        if part not in PARTS or chosen not in PARTS[part]:
            choices = "; ".join(f"{name}: {', '.join(values)}" for name, values in PARTS.items())
            message = f"precision '{chosen}' of part '{part}' is not supported. Choose one of {choices}."
            raise OptionError(message, options=("parts",))
    vision = parts.get("vision", "fp32" if precision == "fp32" else "int8")
    decoder = parts.get("decoder", precision)
    return {
        "vision": vision,
        **({"vision_standard": "fp32"} if vision == "fp32" else {}),
        "score": "fp32",
        "embed": "fp32" if decoder == "fp32" else "int8",
        "decoder": decoder,
        **({"decoder_standard": "fp32"} if decoder == "fp32" else {}),
        **({DECODER_PREFILL: "int8"} if decoder == "int4" else {}),
    }


FP32_GRAPHS = tuple(plan_precisions("fp32", {}))
"""The graphs of a bundle that is not quantised."""


def describe(plan: Mapping[str, str]) -> str:
    """`precision` of the manifest: that of all graphs, or of vision and decoder where they differ."""
    vision, decoder = plan["vision"], plan["decoder"]
    return vision if vision == decoder else f"vision {vision}, decoder {decoder}"

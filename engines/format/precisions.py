"""Precisions: what a graph computes with, and who has which.

A bundle's graphs have one of `EXPORTED`. What is computed in another one later (an engine, a graph in OpenVINO) is a graph in
`fp32` and takes one of `COMPUTED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from foveate.engines.format.names import DECODER, VISION

FP32 = "fp32"
"""Floats of 32 bits throughout: the reference, and what engines are built of."""
INT8 = "int8"
"""Weights in 8 bits, and products with activations in 8 bits as they come: for ONNX Runtime's CPU."""
INT4 = "int4"
"""Weights in 4 bits, products in floats: for ONNX Runtime's CPU."""
FP16 = "fp16"
BF16 = "bf16"

EXPORTED = (FP32, INT8, INT4)
"""Of a graph in a bundle."""
COMPUTED: Mapping[str, str] = {FP32: "float32", FP16: "float16", BF16: "bfloat16"}
"""Of the arithmetic of a graph in `fp32`, chosen when an engine is built or a session opened -> its dtype."""
HALVES = (FP16, BF16)
"""Those of `COMPUTED` with half the bits."""
PARTS: Mapping[str, tuple[str, ...]] = {VISION: (FP32, INT8), DECODER: EXPORTED}
"""Parts of a model whose precision in a bundle can be chosen on its own, and the choices."""

GraphPrecision = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(EXPORTED)})$", description="fp32, int8 or int4")]


def describe(parts: Mapping[str, str]) -> str:
    """One precision for people: that of all parts, or of each one by name where they differ."""
    found = set(parts.values())
    return found.pop() if len(found) == 1 else ", ".join(f"{part} {precision}" for part, precision in parts.items())


def either(names: Iterable[str]) -> str:
    """`fp32, int8 or int4`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last

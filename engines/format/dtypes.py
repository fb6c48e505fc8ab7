"""Dtypes of tensors, by numpy's name of them; `bfloat16`, which numpy itself has not, is one of the names."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

from foveate.engines.system.packages import needed_package

NAMES = ("bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32")
"""Those that inputs and outputs of graphs may have. A library's own name of one stands beside the library."""
DType = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(NAMES)})$", description="numpy's name of a dtype, or bfloat16")]


def host_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name; `bfloat16` is that of ml_dtypes.

    Raises:
        MissingPackageError: ml-dtypes is needed and not installed.
    """
    if name == "bfloat16":
        with needed_package("it gives numpy bfloat16", "tensorrt-rtx", "ml-dtypes", alone=True):
            import ml_dtypes  # noqa: F401  # with it numpy knows the name
    return np.dtype(name)


def itemsize(name: str) -> int:
    """Bytes of an element; no library is loaded for it."""
    return 2 if name == "bfloat16" else np.dtype(name).itemsize

"""The runtime stays light."""

from __future__ import annotations

import subprocess
import sys

import foveate.runtime

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "av", "foveate.exporter")


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = f"import sys, foveate.runtime; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(foveate.runtime, name) for name in foveate.runtime.__all__)

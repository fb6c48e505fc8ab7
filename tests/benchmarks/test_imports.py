"""Every module of the benchmarks and of what made the checkpoints can be imported: no checker reads them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OTHER_TOOLS = {
    "load_openvino": "openvino_genai",
    "openvino_worker": "openvino_genai",
    "ort_genai_worker": "onnxruntime_genai",
}
"""Module -> what it needs of a tool that has an environment of its own."""
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("benchmarks", "models")
    for path in (ROOT / room).rglob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_imported(module: str) -> None:
    needed = OTHER_TOOLS.get(module.rpartition(".")[2])
    if needed and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    import_module(module)

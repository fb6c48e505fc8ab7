"""Engines without a backend: what tests of the store put into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foveate.engines.builds.store import BuildFacts, EngineKey, EngineStore

KEY = EngineKey(
    graph="decoder_standard",
    graph_sha256="a" * 64,
    weights_sha256="b" * 64,
    backend="tensorrt-rtx",
    backend_version="1.7.1",
    target="sm89",
    options={"precision": "bf16", "shapes": {"visual_tokens": [64, 512, 4096]}},
)


def other(**changes: Any) -> EngineKey:
    return msgspec.structs.replace(KEY, **changes)


def builds(content: bytes = b"engine", **facts: Any) -> Callable[[Path], BuildFacts]:
    def build(folder: Path) -> BuildFacts:
        (folder / "build.log").write_text("built")
        (folder / "engine.bin").write_bytes(content)
        return BuildFacts(build_seconds=2.5, **facts)

    return build


def must_not_build(folder: Path) -> BuildFacts:
    pytest.fail("this engine is there already")


def names(store: EngineStore) -> list[str]:
    """Everything in the store's folder."""
    return sorted(path.name for path in store.folder.iterdir())

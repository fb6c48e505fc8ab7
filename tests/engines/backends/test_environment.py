"""What latencies hang on, by what runs a bundle."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import msgspec
import pytest

from foveate.engines import HostMemory, SessionOptions, describe_environment, make_placement


@pytest.mark.parametrize("library", ["tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_the_version_of_a_library_by_either_of_its_names(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    placement = make_placement("tensorrt-rtx", SessionOptions(precision="bf16", cuda_graphs=False))
    assert describe_environment(placement, HostMemory()).backend == "tensorrt-rtx"
    monkeypatch.setitem(sys.modules, library, SimpleNamespace(__version__="1.7.1"))  # type: ignore[arg-type]
    found = describe_environment(placement, HostMemory())
    assert found.backend == "tensorrt-rtx 1.7.1"
    assert found.options == {"precision": "bf16", "cuda_graphs": "False"}


def test_options_of_the_vision_graph_alone_stand_with_its_backend() -> None:
    apart = describe_environment(make_placement("onnxruntime", SessionOptions(precision="bf16"), "openvino"), HostMemory())
    assert (apart.options, apart.vision.startswith("openvino")) == ({}, True)
    assert apart.vision.endswith(", precision bf16")
    assert describe_environment(make_placement(), HostMemory()) == msgspec.structs.replace(apart, vision="")
    shared = make_placement("onnxruntime", SessionOptions(threads=1, provider_options={"a": 1}), "openvino")
    assert describe_environment(shared, HostMemory()).options == {"threads": "1", "provider_options": "{'a': 1}"}

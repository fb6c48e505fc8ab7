"""The API of native TensorRT against that of TensorRT-RTX, with which everything else is tested.

PyPI has TensorRT's own Python bindings, but not the libraries behind them. Empty libraries let them load: nothing runs, but
the names and signatures are the real ones.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from foveate.engines.backends.tensorrt import network

ROOM = Path(network.__file__).parent
OTHERS = {
    "num_compute_capabilities",
    "set_compute_capability",
    "cuda_graph_strategy",
    "create_runtime_cache",
    "set_runtime_cache",
}
"""What only TensorRT-RTX has, and the code asks for behind `ahead_of_time` or a look at the module."""

HOMONYMS = {"itemsize"}
"""Names that the code knows from numpy."""

LIST_API = """
import importlib.util, inspect, json, sys
module = importlib.import_module(sys.argv[1]) if sys.argv[2] == "-" else None
if module is None:
    spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[2])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
api = {}
for name, kind in vars(module).items():
    if inspect.isclass(kind):
        members = {}
        for member in dir(kind):
            if not member.startswith("_"):
                document = getattr(kind, member).__doc__ if callable(getattr(kind, member, None)) else ""
                members[member] = (document or "").strip().split("\\n")[0]
        api[name] = members
print(json.dumps(api))
"""


def list_api(*arguments: str, **environment: str) -> dict[str, dict[str, str]]:
    """Classes of a module, their members, and the first line of each method's documentation: its signature."""
    command = [sys.executable, "-W", "ignore", "-c", LIST_API, *arguments]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    api = json.loads(result.stdout)
    # The module's name is part of the types.
    return {kind: {m: re.sub(r"tensorrt\w*\.(tensorrt\w*\.)?", "", text) for m, text in members.items()}
            for kind, members in api.items()}  # fmt: skip


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    bindings, compiler = find_spec("tensorrt_bindings"), shutil.which("gcc")
    if bindings is None or bindings.origin is None or compiler is None:
        pytest.skip("needs tensorrt-cu13-bindings and gcc")
    binary = Path(bindings.origin).with_name("tensorrt.so")
    folder = tmp_path_factory.mktemp("libraries")
    undefined = subprocess.run(["nm", "-D", "--undefined-only", binary], capture_output=True, text=True, check=True).stdout
    functions = re.findall(
        r" U ((?:create|get|init)\w*Infer\w*|create\w*Onnx\w*|get\w*(?:Registry|Version)|initLib\w*)$", undefined, re.M
    )
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for name in re.findall(r"lib(?:nvinfer|nvonnx)\w*\.so\.\d+", binary.read_bytes().decode("latin-1")):
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, folder / "empty.c"], check=True)
    return list_api("-", str(binary), LD_LIBRARY_PATH=str(folder))


def used_names() -> set[str]:
    """Every attribute that the room's code reads, writes or calls."""
    trees = [ast.parse(file.read_text()) for file in ROOM.glob("*.py")]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_what_the_code_uses_has_the_same_signature_in_both_libraries(native: dict[str, dict[str, str]]) -> None:
    rtx = list_api("tensorrt_rtx_bindings", "-")
    names = used_names() - OTHERS - HOMONYMS
    compared = 0
    for kind, members in rtx.items():
        for name in names & set(members):
            if kind in native:
                assert native[kind].get(name) == members[name], f"{kind}.{name}"
                compared += 1
    classes = {"Builder", "IBuilderConfig", "OnnxParser", "Runtime", "ICudaEngine", "IExecutionContext", "Refitter"}
    assert classes <= native.keys() & rtx.keys()
    assert compared > 50


def test_ahead_of_time_targets_are_the_other_librarys_alone(native: dict[str, dict[str, str]]) -> None:
    assert "ComputeCapability" not in native
    assert "CudaGraphStrategy" not in native

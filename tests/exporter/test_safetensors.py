"""The safetensors reader and writer against the library of the format."""

from __future__ import annotations

import json
import math
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foveate.engines import ExportError
from foveate.exporter import safetensors
from foveate.exporter.safetensors import FilePlan, element_bytes, read_header

SHAPES = {"odd": (3, 5), "even": (4, 16), "vector": (7,), "cube": (2, 2, 16)}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> FilePlan:
    plan = FilePlan.lay_out(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    plan.write([tensors[name]] for name in plan.tensors)
    return plan


def random_tensors() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def test_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = random_tensors()
    write(tmp_path / "x.safetensors", tensors)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_plan_says_where_each_tensor_lies(tmp_path: Path) -> None:
    tensors = random_tensors()
    plan = write(tmp_path / "x.safetensors", tensors)
    assert read_header(tmp_path / "x.safetensors") == plan.tensors
    assert all(torch.equal(plan.tensors[name].read(), tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", ["F32", "F16", "I8", "U8"])
def test_an_element_takes_what_is_said(dtype: str, tmp_path: Path) -> None:
    plan = FilePlan.lay_out(tmp_path / "x.safetensors", SHAPES, dict.fromkeys(SHAPES, dtype))
    plan.write([torch.ones(SHAPES[name])] for name in plan.tensors)
    elements = sum(math.prod(shape) for shape in SHAPES.values())
    assert plan.path.stat().st_size - len(plan.header) == elements * element_bytes(dtype)


def test_tensors_that_can_be_aligned_are(tmp_path: Path) -> None:
    plan = FilePlan.lay_out(tmp_path / "x.safetensors", SHAPES)
    assert plan.tensors["even"].offset % 64 == 0
    assert plan.tensors["cube"].offset % 64 == 0


def test_an_offset_before_the_data_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-400, -396]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ExportError, match="begins at -400"):
        read_header(tmp_path / "x.safetensors")


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "'w' is there twice": b'{"w": %s, "w": %s}' % (2 * (json.dumps(ENTRY).encode(),)),
    "'dtype' is there twice": b'{"w": {"dtype": "F32", "dtype": "F64", "shape": [1], "data_offsets": [0, 4]}}',
    "'w' has shape [-1]": json.dumps({"w": ENTRY | {"shape": [-1]}}).encode(),
    "'w' has shape [True]": json.dumps({"w": ENTRY | {"shape": [True]}}).encode(),
    "begins at 4, ends at 0": json.dumps({"w": ENTRY | {"data_offsets": [4, 0]}}).encode(),
    "ends at byte": json.dumps({"w": ENTRY | {"data_offsets": [0, 2**70]}}).encode(),
    "which is not I64 of shape [1]": json.dumps({"w": ENTRY | {"dtype": "I64"}}).encode(),
    "is not a safetensors file": b"[" * 100_000,
}


@pytest.mark.parametrize("message", HEADERS)
def test_a_header_that_can_t_be_trusted_is_refused(message: str, tmp_path: Path) -> None:
    header = HEADERS[message]
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ExportError) as refused:
        read_header(tmp_path / "x.safetensors")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=200))
def test_whatever_stands_in_a_file_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    for data in (content, struct.pack("<Q", len(content)) + content):
        path.write_bytes(data)
        with suppress(ExportError):
            read_header(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reads_every_float(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(5, 3).to(dtype)
    save_file({"w": tensor}, tmp_path / "x.safetensors")
    assert torch.equal(read_header(tmp_path / "x.safetensors")["w"].read(), tensor)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), chunk_bytes=st.integers(1, 200))
def test_rows_join_to_the_tensor(tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, chunk_bytes: int) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.safetensors"
    tensor = torch.randn(rows, columns)
    save_file({"w": tensor}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors, "_CHUNK_BYTES", chunk_bytes)
        chunks = list(read_header(path)["w"].rows())
    assert torch.equal(torch.cat(chunks), tensor)
    assert all(len(chunk) == 1 or chunk.nbytes <= chunk_bytes for chunk in chunks)

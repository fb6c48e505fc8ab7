"""safetensors files, read and written a few rows at a time.

The format is eight bytes of header length, a JSON header, then the tensors without gaps. Plain reads in place of a
memory map keep a large checkpoint out of the process: only what is being converted is resident.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from foveate.engines import ExportError
from foveate.engines.errors import reason_of

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""The format's name of a dtype -> torch's, of those that an export reads or writes."""
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
_MAX_HEADER_BYTES = 100_000_000
_CHUNK_BYTES = 32 * 1024 * 1024
_PAGE_BYTES = 4096
_ALIGNED_BYTES = 64


def element_bytes(dtype: str) -> int:
    """Bytes of one element of a dtype that an export writes, by the format's name of it."""
    return _DTYPES[dtype].itemsize


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `offset` and `size_bytes` count in bytes from the start of `file`."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def is_float(self) -> bool:
        """Whether the values are plain floats, which alone can be exported."""
        return self.dtype in _DTYPES and _DTYPES[self.dtype].is_floating_point

    def rows(self) -> Iterator[torch.Tensor]:
        """The tensor in consecutive slices of its first axis, each at most about 32 MB, in the dtype of the file."""
        dtype = _DTYPES[self.dtype]
        num_rows = self.shape[0] if self.shape else 1
        step = max(1, _CHUNK_BYTES * num_rows // max(1, self.size_bytes))
        row_bytes = self.size_bytes // max(1, num_rows)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, num_rows, step):
                count = min(step, num_rows - start)
                chunk = bytearray(file.read(count * row_bytes))
                yield torch.frombuffer(chunk, dtype=dtype).reshape(count, *self.shape[1:])

    def read(self) -> torch.Tensor:
        """The whole tensor in the dtype of the file."""
        return torch.cat(list(self.rows())).reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by its name, of whatever dtype; see `StoredTensor.is_float`.

    Raises:
        ExportError: the file can't be read, is not safetensors, or is cut off.
    """
    try:
        return _read_header(path)
    except OSError as error:
        raise ExportError(f"{path} can't be read: {error.strerror}. Check that it is there and yours to read.") from error


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    remedy = "Download the checkpoint again."
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES + 1
        if length > _MAX_HEADER_BYTES or 8 + length > size:
            raise ExportError(f"{path} is not a whole safetensors file: its header does not fit in its {size} bytes. {remedy}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            tensors = {name: _entry(path, name, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ExportError(
                f"{path} is not a safetensors file: its header is malformed ({reason_of(error)}). {remedy}"
            ) from error
    for tensor in tensors.values():
        _check_entry(tensor, size, remedy)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header; which of two entries of one name is meant, readers disagree."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found


def _entry(path: Path, name: str, data_start: int, entry: Mapping[str, list[int]]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)) or end < begin:
        raise ValueError(f"'{name}' has shape {list(shape)} and begins at {begin}, ends at {end}")
    return StoredTensor(path, name, str(entry["dtype"]), shape, data_start + begin, end - begin)


def _check_entry(tensor: StoredTensor, file_bytes: int, remedy: str) -> None:
    where = f"tensor '{tensor.name}' of {tensor.file}"
    end = tensor.offset + tensor.size_bytes
    if end > file_bytes:
        raise ExportError(f"{where} ends at byte {end}, the file has {file_bytes}: it is cut off or damaged. {remedy}")
    bits = _BITS.get(tensor.dtype)  # of a dtype that is not known the size can't be told
    if bits is not None and 8 * tensor.size_bytes != math.prod(tensor.shape) * bits:
        shape = f"{tensor.dtype} of shape {list(tensor.shape)}"
        raise ExportError(f"{where} has {tensor.size_bytes} bytes, which is not {shape}: it is cut off or damaged. {remedy}")


@dataclass(frozen=True)
class FilePlan:
    """A safetensors file that is yet to be written: its header and where each tensor will lie."""

    path: Path
    header: bytes
    tensors: dict[str, StoredTensor]

    @classmethod
    def lay_out(cls, path: Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str] | None = None) -> FilePlan:
        """Gives each tensor its place; `dtypes` has those that are not `F32`: `I8` or `U8`.

        The data starts on a page, and tensors whose size is a multiple of 64 bytes come first, so that all of those lie
        on 64 bytes as runtimes like for memory-mapped weights (the format allows no padding between tensors).
        """
        kinds = {name: (dtypes or {}).get(name, "F32") for name in shapes}
        bytes_of = {name: math.prod(shapes[name]) * element_bytes(kinds[name]) for name in shapes}
        names = sorted(shapes, key=lambda name: (bytes_of[name] % _ALIGNED_BYTES != 0, name))
        sizes = [bytes_of[name] for name in names]
        places = {
            name: StoredTensor(path, name, kinds[name], tuple(shapes[name]), begin, size)
            for name, begin, size in zip(names, [0, *accumulate(sizes[:-1])], sizes, strict=True)
        }
        header = _encode_header(places)
        return cls(path, header, {name: replace(place, offset=place.offset + len(header)) for name, place in places.items()})

    def write(self, tensors: Iterable[Iterable[torch.Tensor]]) -> None:
        """Writes the file; `tensors` yields each one of `self.tensors`, in its order, whole or in consecutive rows."""
        with self.path.open("wb") as file:
            file.write(self.header)
            for place, chunks in zip(self.tensors.values(), tensors, strict=True):
                for chunk in chunks:
                    file.write(chunk.to(_DTYPES[place.dtype]).contiguous().numpy().data)


def _encode_header(tensors: Mapping[str, StoredTensor]) -> bytes:
    """Length and JSON header, padded with spaces to a whole page; offsets count from the start of the data."""
    entries = {
        name: {"dtype": t.dtype, "shape": t.shape, "data_offsets": [t.offset, t.offset + t.size_bytes]}
        for name, t in tensors.items()
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = text.ljust(-(-(8 + len(text)) // _PAGE_BYTES) * _PAGE_BYTES - 8)
    return struct.pack("<Q", len(padded)) + padded

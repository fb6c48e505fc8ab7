"""The folder of an evaluation: every answer as soon as it is given, so that a killed run goes on where it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

import msgspec

from foveate.engines import hash_file, replace_file
from foveate.engines.errors import DataError, MachineError, reason_of
from foveate.engines.format.bundle import MANIFEST
from foveate.evaluate.ask import Plan, Record
from foveate.evaluate.labels import hash_labels
from foveate.runtime.encoding import Encode
from foveate.samples import QUESTIONS

ANSWERS = "answers.jsonl"
REPORTS = ("report.json", "report.md", "accuracy.png")
_REMEDY = "Choose another output folder, or start anew."
_OPTIONS = ("output", "force")


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What answers depend on: the first line of `answers.jsonl`."""

    bundle_sha256: str
    """Of the bundle's manifest, which has the hashes of its files."""
    questions_sha256: str
    labels_sha256: str | None
    keeps: tuple[float, ...]
    selectors: tuple[str, ...]
    max_new_tokens: int | None
    backend: str
    encodes: tuple[Encode, ...] = ()

    @classmethod
    def of(cls, bundle: Path, data: Path, plan: Plan, backend: str) -> Run:
        """What a plan asks a bundle about the questions of a folder."""
        hashes = hash_file(bundle / MANIFEST), hash_file(data / QUESTIONS), hash_labels(plan.oracle) if plan.oracle else None
        return cls(*hashes, plan.keeps, plan.selectors, plan.max_new_tokens, backend, plan.encodes)


def read_answers(output: Path, run: Run) -> list[Record]:
    """The finished samples of an earlier call; a last line without its end does not count.

    Raises:
        DataError: they are of another run, or broken.
    """
    file = output / ANSWERS
    if not file.is_file():
        foreign = [name for name in REPORTS if (output / name).exists()]
        if foreign:
            raise DataError(f"{output / foreign[0]} exists, without the answers of a run. {_REMEDY}", options=_OPTIONS)
        return []
    first, *rest = file.read_bytes().split(b"\n")[:-1] or [_line(run)]
    _check_same(_decode(first, Run, f"{file}, line 1"), run, output)
    records = [_decode(line, Record, f"{file}, line {number}") for number, line in enumerate(rest, start=2)]
    if [record.number for record in records] != list(range(len(records))):
        raise DataError(f"{file} does not have the samples in their order. {_REMEDY}", options=_OPTIONS)
    return records


_Entry = TypeVar("_Entry", Run, Record)


def _decode(line: bytes, kind: type[_Entry], where: str) -> _Entry:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {reason_of(error)}. {_REMEDY}", options=_OPTIONS) from error


def _check_same(there: Run, run: Run, output: Path) -> None:
    different = [
        f"{name} was {_short(getattr(there, name))} and is {_short(getattr(run, name))}"
        for name in Run.__struct_fields__
        if getattr(there, name) != getattr(run, name)
    ]
    if different:
        raise DataError(f"{output} has the answers of another run: {'; '.join(different)}. {_REMEDY}", options=_OPTIONS)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value) or "none"
    return str(value)[:12]  # enough of a hash


def append_answers(fresh: Iterator[Record], records: Sequence[Record], run: Run, output: Path) -> Iterator[Record]:
    """Passes on what is asked, each record as soon as its line is in the file behind those of an earlier call."""
    first = next(fresh)  # what can't be served at all is refused here, before anything is written
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name in REPORTS:  # of an earlier run
            (output / name).unlink(missing_ok=True)
        replace_file(output / ANSWERS, b"".join(map(_line, [run, *records])))
        file = (output / ANSWERS).open("ab")
    with file:
        for record in chain([first], fresh):
            with writing(output):
                file.write(_line(record))
                file.flush()
            yield record


def _line(entry: msgspec.Struct) -> bytes:
    return msgspec.json.encode(entry) + b"\n"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says which folder can't be written."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{folder} can't be written: {error.strerror or error}. Choose another folder.") from error

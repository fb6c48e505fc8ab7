"""The tables of docs/serving.md, from the classes that the server reads and the list of its endpoints.

python -m benchmarks.serving
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import inspect as kinds

from benchmarks.documents import notes_of, parts_of, words_of
from benchmarks.pages import write_between
from foveate.serve import schema
from foveate.serve.metrics import Metrics
from foveate.serve.openapi import OPERATIONS, STATUSES
from foveate.serve.replies import Report, Usage

PAGE = Path("docs/serving.md")
BEGIN = "<!-- python -m benchmarks.serving -->"


def main() -> None:
    """Writes the tables into the page."""
    write_between(PAGE, BEGIN, lines())


def lines() -> list[str]:
    """Endpoints, errors, figures, and a table for each body and part."""
    found = ["### Endpoints", "| endpoint | | body | errors |", "|---|---|---|---|"]
    for one in OPERATIONS:
        body = f"[{one.body.__name__}](#{one.body.__name__.lower()})" if one.body else ""
        statuses = ", ".join(map(str, one.statuses))
        found.append(f"| `{one.method} {one.path}` | {one.summary} | {body} | {statuses} |")
    found += ["### Errors", "| status | |", "|---|---|", *(f"| {status} | {says} |" for status, says in STATUSES.items())]
    found += ["### Figures", "| name | |", "|---|---|"]
    found += [f"| `{name}` | {says} |" for name, says in Metrics(()).names().items()]
    bodies = [one.body for one in OPERATIONS if one.body]
    parts = dict.fromkeys(part for body in bodies for part in parts_of(kinds.type_info(body)) if part not in bodies)
    for body in bodies:
        found += [f"### {body.__name__}", (body.__doc__ or "").strip(), *_table(body)]
    for part in parts:
        found += [f"### {part.__name__}", (part.__doc__ or "").strip(), *_table(part)]
    for reply in (Report, *(part for part in parts_of(kinds.type_info(Usage)))):
        found += [f"### {reply.__name__}", (reply.__doc__ or "").strip().splitlines()[0], *_table(reply)]
    return found


def _table(cls: type) -> Iterator[str]:
    info, notes = kinds.type_info(cls), notes_of(cls)
    assert isinstance(info, kinds.StructType)
    yield "| field | type | |"
    yield "|---|---|---|"
    if info.tag_field:
        yield f'| `{info.tag_field}` | string | `"{info.tag}"` |'
    for field in info.fields:
        asked = issubclass(cls, schema.Body)
        words = words_of(field.type) if field.required or not asked else words_of(field.type).removesuffix(" or null")
        needed = "needed; " if field.required and asked else ""
        yield f"| `{field.encode_name}` | {words}{_bounds(field.type)} | {needed}{notes.get(field.encode_name, '')} |"


def _bounds(kind: kinds.Type) -> str:
    """What a number may be, or how long a list."""
    if isinstance(kind, kinds.Metadata):
        return _bounds(kind.type)
    if isinstance(kind, kinds.UnionType):
        return next(filter(None, map(_bounds, kind.types)), "")
    if isinstance(kind, kinds.IntType | kinds.FloatType):
        low = f"{kind.ge:g} to" if kind.ge is not None else f"above {kind.gt:g} to" if kind.gt is not None else ""
        high = kind.le
        if not low or high is None or high >= 2**53:
            return ""
        return f", {low.removesuffix(' to')} or more" if high >= 2**31 - 1 else f", {low} {high:g}"
    if isinstance(kind, kinds.ListType) and kind.max_length is not None:
        return f", at most {kind.max_length}"
    return ""


if __name__ == "__main__":
    main()

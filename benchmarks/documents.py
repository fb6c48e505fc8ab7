"""The tables of docs/json.md, from the classes that `--json` writes.

python -m benchmarks.documents
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from msgspec import inspect as kinds

from benchmarks.pages import write_between
from foveate.cli.documents import DOCUMENTS, find_document

PAGE = Path("docs/json.md")
BEGIN = "<!-- python -m benchmarks.documents -->"
_NOTE = re.compile(r"^    (\w+): ")
_PLAIN = {
    kinds.StrType: "string",
    kinds.IntType: "integer",
    kinds.FloatType: "number",
    kinds.BoolType: "true or false",
    kinds.NoneType: "null",
    kinds.AnyType: "anything",
}


def main() -> None:
    """Writes the tables into the page."""
    write_between(PAGE, BEGIN, lines())


def lines() -> list[str]:
    """A table for each document, then one for each of their parts."""
    documents = {command: find_document(command) for command in DOCUMENTS}
    parts = dict.fromkeys(part for cls in documents.values() for part in parts_of(kinds.type_info(cls)) if part is not cls)
    found = []
    for command, cls in documents.items():
        found += [f"## foveate {command} --json", *_table(cls)]
    found.append("## Parts")
    for part in (part for part in parts if part not in documents.values()):
        found += [f"### {part.__name__}", *_table(part)]
    return found


def _table(cls: type) -> Iterator[str]:
    yield "| field | type | |"
    yield "|---|---|---|"
    info, notes = kinds.type_info(cls), notes_of(cls)
    if isinstance(info, kinds.StructType) and info.tag_field:
        yield f'| `{info.tag_field}` | string | `"{info.tag}"` |'
    assert isinstance(info, kinds.StructType | kinds.DataclassType)
    for field in info.fields:
        yield f"| `{field.encode_name}` | {words_of(field.type)} | {notes.get(field.name, '')} |"


def words_of(kind: Any) -> str:
    """A type in words, with links to the parts."""
    if isinstance(kind, kinds.Metadata):
        return words_of(kind.type)
    if type(kind) in _PLAIN:
        return _PLAIN[type(kind)]
    if isinstance(kind, kinds.LiteralType):
        return " or ".join(f'`"{value}"`' for value in kind.values)
    if isinstance(kind, kinds.UnionType):
        return " or ".join(map(words_of, kind.types))
    if isinstance(kind, kinds.TupleType):
        return f"[{', '.join(map(words_of, kind.item_types))}]"
    if isinstance(kind, kinds.ListType | kinds.VarTupleType):
        return f"list of {words_of(kind.item_type)}"
    if isinstance(kind, kinds.DictType):
        return f"object of {words_of(kind.value_type)}"
    return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"


def parts_of(kind: Any) -> Iterator[type]:
    """The classes within a type, each before its own parts."""
    if isinstance(kind, kinds.StructType | kinds.DataclassType):
        yield kind.cls
        inner = [field.type for field in kind.fields]
    else:
        names = ("type", "item_type", "value_type")
        inner = [getattr(kind, name) for name in names if hasattr(kind, name)]
        inner += [*getattr(kind, "types", ()), *getattr(kind, "item_types", ())]
    for part in inner:
        yield from parts_of(part)


def notes_of(cls: type) -> dict[str, str]:
    """What a class and its bases say about their fields: in the type, in the docstring, or in a string below the field."""
    notes = _in_types(cls)
    for base in (base for base in reversed(cls.__mro__) if base.__module__.startswith("foveate.")):
        notes |= _of_docstring(inspect.getdoc(base) or "") | _below_fields(base)
    return {
        name: " ".join(text.split()).rstrip(".").replace("|", r"\|").replace("None ", "null ") for name, text in notes.items()
    }


def _in_types(cls: type) -> dict[str, str]:
    info = kinds.type_info(cls)
    assert isinstance(info, kinds.StructType | kinds.DataclassType)
    noted = {field.name: field.type.extra_json_schema for field in info.fields if isinstance(field.type, kinds.Metadata)}
    return {name: schema["description"] for name, schema in noted.items() if schema}


def _of_docstring(text: str) -> dict[str, str]:
    notes: dict[str, str] = {}
    name = ""
    for line in text.partition("Attributes:\n")[2].partition("\n\n")[0].splitlines():
        if found := _NOTE.match(line):
            name = found[1]
            notes[name] = line[found.end() :]
        elif name:
            notes[name] += f" {line}"
    return notes


def _below_fields(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except OSError:  # made of a list
        return {}
    (definition,) = ast.parse(dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: below.value.value
        for field, below in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


if __name__ == "__main__":
    main()

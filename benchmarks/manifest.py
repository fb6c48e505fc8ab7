"""What docs/ says of manifest.json, from the structs that read it: the tables of docs/bundle.md and docs/manifest.schema.json.

python -m benchmarks.manifest
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as kinds

from benchmarks.documents import notes_of, parts_of, words_of
from benchmarks.pages import write_between
from foveate.engines import SCHEMA_VERSION, Manifest
from foveate.engines.format.processors import CONSTANTS, constants_type
from foveate.engines.format.seal import KEY

PAGE = Path("docs/bundle.md")
SCHEMA = Path("docs/manifest.schema.json")
BEGIN = "<!-- python -m benchmarks.manifest -->"
_SEAL = "Of every byte before the comma in front of this entry, which is the last"


def main() -> None:
    """Writes both."""
    write_between(PAGE, BEGIN, lines())
    SCHEMA.write_bytes(schema())


def lines() -> list[str]:
    """A table for the manifest and for each of its parts."""
    found = [*_table(Manifest), f"| `{KEY}` | string | | {_SEAL} |"]
    for part in dict.fromkeys(part for part in parts_of(kinds.type_info(Manifest)) if part is not Manifest):
        found += [f"### {part.__name__}", (part.__doc__ or "").strip(), *_table(part)]
    for family in CONSTANTS:
        kind = constants_type(family)
        found += [f"### {kind.__name__}", f"`processor` of family `{family}`, {kind.title}.", *_table(kind)]
    return found


def _table(cls: type) -> Iterator[str]:
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    info, notes = kinds.type_info(cls), notes_of(cls)
    assert isinstance(info, kinds.StructType)
    for field in info.fields:
        yield f"| `{field.encode_name}` | {words_of(field.type)} | {_default(field)} | {notes[field.name]} |"


def _default(field: kinds.Field) -> str:
    """What a field is that is not there; nothing where it has to be."""
    value = field.default if field.default_factory is NODEFAULT else field.default_factory()
    return "" if value is NODEFAULT else f"`{msgspec.json.encode(value).decode()}`"


def schema() -> bytes:
    """The JSON schema of a whole file, its hash among the rest."""
    found: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Manifest)}
    _add_constants(found)
    for part in [*parts_of(kinds.type_info(Manifest)), *map(constants_type, CONSTANTS)]:
        properties, notes = found["$defs"][part.__name__]["properties"], notes_of(part)
        for name, facts in properties.items():
            properties[name] = {**facts, "description": notes[name]}
    whole = found["$defs"][Manifest.__name__]
    whole["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    whole["properties"][KEY] = {"description": _SEAL, "type": "string", "pattern": "^[0-9a-f]{64}$"}
    whole["required"].append(KEY)
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _add_constants(schema: dict[str, Any]) -> None:
    """What `processor` holds hangs on `family`."""
    cases = []
    for family in CONSTANTS:
        kind = constants_type(family)
        own = msgspec.json.schema(kind)
        schema["$defs"][kind.__name__] = {**own["$defs"][kind.__name__], "description": f"`processor` of {kind.title}"}
        cases.append(
            {"if": {"properties": {"family": {"const": family}}}, "then": {"properties": {"processor": {"$ref": own["$ref"]}}}}
        )
    whole = schema["$defs"][Manifest.__name__]
    whole["properties"]["family"]["enum"] = list(CONSTANTS)
    whole["allOf"] = cases


if __name__ == "__main__":
    main()

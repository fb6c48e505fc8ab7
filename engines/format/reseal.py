"""`python -m foveate.engines.format.reseal FILE`: writes the hash of a manifest that was edited by hand anew."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from foveate.engines.errors import BundleError, FoveateError, reason_of
from foveate.engines.format.bundle import MANIFEST, write_manifest
from foveate.engines.format.manifest import decode_document
from foveate.engines.format.seal import KEY


def reseal(file: Path) -> None:
    """Reads a `manifest.json` whatever its hash says, and writes it anew.

    Raises:
        BundleError: it can't be read, or is no manifest.
    """
    if file.name != MANIFEST:
        raise BundleError(f"{file} is no {MANIFEST}. Give the path of one.")
    try:
        document = msgspec.json.decode(file.read_bytes(), type=dict)
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror}. Give the path of a manifest.json.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON: {reason_of(error)}. Mend it, or export the bundle again.") from error
    document.pop(KEY, None)
    write_manifest(file.parent, decode_document(msgspec.json.encode(document), str(file)))


if __name__ == "__main__":
    try:
        reseal(Path(*sys.argv[1:2]))
    except FoveateError as error:
        sys.exit(f"Error: {error}")

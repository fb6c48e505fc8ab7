"""A JSON file that ends with the sha256 of itself: whatever damages it is noticed.

It is no signature: who writes the file on purpose writes the hash too.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

KEY = "sha256"
"""Of the last entry of a sealed document."""


def seal(document: Any) -> bytes:
    """A value that encodes as a JSON object, in lines, with the sha256 of everything before it as its last entry."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    body = text.removesuffix(b"\n}")
    return body + _tail(body)


def unseal(data: bytes) -> bytes | None:
    """The document without its hash; None where the two do not belong together, in any bit."""
    length = len(_tail(b""))
    body, tail = data[:-length], data[-length:]
    return body + b"\n}" if tail == _tail(body) else None


def _tail(body: bytes) -> bytes:
    return f',\n  "{KEY}": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()

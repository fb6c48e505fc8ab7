"""Where images and videos of a request come from."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.engines import RequestError

_DATA = re.compile(r"data:[\w.+/-]*(;[\w.+=-]+)*;base64,", re.ASCII)


@dataclass(frozen=True)
class SourceLimits:
    """What is too much to fetch.

    Attributes:
        max_bytes: of one image or video.
    """

    max_bytes: int = 64 * 1024**2


class Sources:
    """Reads `data:` addresses.

    Args:
        allow_hosts: from which may be fetched.
        allow_folders: from which may be read.
        limits: what is too much.
    """

    def __init__(
        self, allow_hosts: tuple[str, ...] = (), allow_folders: tuple[Path, ...] = (), limits: SourceLimits | None = None
    ) -> None:
        self._limits = limits or SourceLimits()

    async def resolve(self, part_url: str, kind: Literal["image", "video"]) -> bytes | Path:
        """What an address holds.

        Raises:
            RequestError: it can't be used.
        """
        head = _DATA.match(part_url)
        if head is None:
            raise RequestError(f"the address of the {kind} is not of the form data:TYPE;base64,CONTENT. Send it so.")
        try:
            return base64.b64decode(part_url[head.end() :], validate=True)
        except binascii.Error as error:
            raise RequestError(f"the {kind} is not base64. Encode it again.") from error

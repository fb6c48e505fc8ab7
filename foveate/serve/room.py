"""Bytes that requests hold in memory: those of one, and of all together."""

from __future__ import annotations

import sys
import threading
from typing import Self

from foveate.engines import BusyError, CancelledError, RequestError


class Room:
    """What all requests together may hold.

    Args:
        max_bytes: so much.

    Attributes:
        held: how much they do.
    """

    def __init__(self, max_bytes: int = sys.maxsize) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        self.lock = threading.Lock()


class Holding:
    """What one request holds of it; `with` gives it back at the end. Threads may share it."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = self._fetched = 0
        self._over = False

    def take(self, size: int) -> None:
        """Holds more.

        Raises:
            BusyError: there is no room for it now.
            CancelledError: the request is over.
        """
        room = self._room
        with room.lock:
            if self._over:
                raise CancelledError("the request is over.")
            if room.held + size > room.max_bytes:
                fact = f"the requests that are not answered yet hold {room.held} of {room.max_bytes} bytes"
                raise BusyError(f"{fact}, which leaves no room for this one. Ask again later.")
            room.held += size
            self._held += size

    def take_fetched(self, size: int, most: int) -> None:
        """Holds more of what the request names by its address; raises what `take` does.

        Args:
            size: bytes.
            most: of all that it names.

        Raises:
            RequestError: it names more.
        """
        self.take(size)
        with self._room.lock:
            self._fetched += size
            fetched = self._fetched
        if fetched > most:
            raise RequestError(
                f"what the addresses of the request lead to has more than {most} bytes together, the limit. "
                "Name fewer or smaller images and videos."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._room.lock:
            self._over = True
            self._room.held -= self._held

"""Who is next: the lowest priority number, within one the client that got least so far, of one client the oldest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from foveate.runtime.scheduler.ticket import Ticket


class Queue:
    """Tickets that wait. Clients of one priority take turns by what was spent on them. One whose line was empty begins level
    with the one that was served last, so that staying away earns nothing. (Start-time fair queueing, Goyal et al. 1996.)

    Not for several threads.
    """

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, deque[Ticket]]] = {}
        self._spent: dict[str, float] = {}
        self._now = 0.0  # what was spent on the client that was served last

    def __len__(self) -> int:
        return sum(len(line) for lines in self._lines.values() for line in lines.values())

    def __iter__(self) -> Iterator[Ticket]:
        """All of them, in no order that counts."""
        return (ticket for lines in self._lines.values() for line in lines.values() for ticket in line)

    def push(self, ticket: Ticket) -> None:
        """Puts a ticket at the end of its client's line."""
        if not any(ticket.client in lines for lines in self._lines.values()):
            self._spent[ticket.client] = max(self._spent.get(ticket.client, 0.0), self._now)
        self._lines.setdefault(ticket.priority, {}).setdefault(ticket.client, deque()).append(ticket)

    def pop(self) -> Ticket:
        """The next one, which leaves."""
        priority = min(self._lines)
        client = min(self._lines[priority], key=lambda name: (self._spent[name], self._lines[priority][name][0].id))
        ticket = self._lines[priority][client][0]
        self._now = max(self._now, self._spent[client])
        self.remove(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Takes a ticket out, wherever it stands."""
        lines = self._lines[ticket.priority]
        lines[ticket.client].remove(ticket)
        if not lines[ticket.client]:
            del lines[ticket.client]
        if not lines:
            del self._lines[ticket.priority]

    def spend(self, client: str, seconds: float) -> None:
        """Notes what the machine did for a client."""
        self._spent[client] = self._spent.get(client, 0.0) + seconds
        if len(self._spent) > 1000:  # those that have nothing here begin anew
            waiting = {name for lines in self._lines.values() for name in lines}
            self._spent = {name: spent for name, spent in self._spent.items() if name in waiting or name == client}

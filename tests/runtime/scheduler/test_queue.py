"""Who is next."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from foveate.runtime import Request
from foveate.runtime.scheduler.queue import Queue
from foveate.runtime.scheduler.ticket import Ticket

NUMBERS = count(1)


def ticket(client: str = "", priority: int = 0) -> Ticket:
    return Ticket(next(NUMBERS), Request.ask("What?"), client, priority, None, False, lambda: None)


def test_of_one_client_the_oldest_is_next() -> None:
    queue, tickets = Queue(), [ticket() for _ in range(4)]
    for one in tickets:
        queue.push(one)
    assert [queue.pop() for _ in tickets] == tickets
    assert len(queue) == 0


def test_lower_priorities_go_first() -> None:
    queue = Queue()
    late, early = ticket(priority=1), ticket(priority=-5)
    queue.push(late)
    queue.push(early)
    assert [queue.pop(), queue.pop()] == [early, late]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1)), max_size=30),
    st.lists(st.integers(0, 29), max_size=10),
)
def test_nobody_is_lost(given_in: list[tuple[str, int]], removed: list[int]) -> None:
    queue, tickets = Queue(), [ticket(client, priority) for client, priority in given_in]
    for one in tickets:
        queue.push(one)
    gone = {number for number in removed if number < len(tickets)}
    for number in gone:
        queue.remove(tickets[number])
    left = [one for number, one in enumerate(tickets) if number not in gone]
    assert {one.id for one in queue} == {one.id for one in left}
    popped = [queue.pop() for _ in range(len(queue))]
    assert sorted(one.id for one in popped) == [one.id for one in left]
    assert [one.priority for one in popped] == sorted(one.priority for one in left)


@given(st.lists(st.floats(0.01, 10), min_size=4, max_size=40))
def test_turns_are_by_what_was_spent(costs: list[float]) -> None:
    """Each of two clients that always want more gets about as much of the machine, whatever one request costs."""
    queue, got = Queue(), {"a": 0.0, "b": 0.0}
    for client in got:
        for _ in costs:
            queue.push(ticket(client))
    for number in range(len(costs)):
        client = queue.pop().client
        cost = costs[number] if client == "a" else costs[-number]
        queue.spend(client, cost)
        got[client] += cost
        assert abs(got["a"] - got["b"]) <= max(costs) + 1e-9


def test_waiting_earns_nothing() -> None:
    queue = Queue()
    for _ in range(3):
        queue.push(ticket("busy"))
    for _ in range(2):
        queue.pop()
        queue.spend("busy", 10.0)
    for _ in range(3):
        queue.push(ticket("late"))
    order = []
    for _ in range(4):
        order.append(queue.pop().client)
        queue.spend(order[-1], 10.0)
    assert order != ["late", "late", "late", "busy"]


def test_whom_the_machine_served_alone_is_not_starved_by_a_newcomer() -> None:
    queue, served = Queue(), list[str]()
    queue.push(ticket("old"))
    queue.pop()
    queue.spend("old", 3600.0)
    for client in ("new", "old") * 8:
        queue.push(ticket(client))
    for _ in range(16):
        served.append(queue.pop().client)
        queue.spend(served[-1], 1.0)
    assert 6 <= served[:16].count("old") <= 8
    assert "old" in served[:12]

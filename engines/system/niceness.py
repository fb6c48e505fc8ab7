"""Threads that give way: the CPU goes to the others first, and to them what is left."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from foveate.engines.errors import OptionError

T = TypeVar("T")
MOST_NICE = 19


def check_niceness(name: str, nice: int) -> None:
    """
    Raises:
        OptionError: it is no niceness, or this system has none of single threads.
    """
    if type(nice) is not int or not 0 <= nice <= MOST_NICE:
        raise OptionError(f"{name} is {nice!r}, expected 0 to {MOST_NICE}. Use 0 for none.", options=(name,))
    if nice and sys.platform != "linux":
        raise OptionError(f"{name} is {nice}, and only Linux has a niceness of single threads. Use 0.", options=(name,))


def give_way(nice: int) -> None:
    """Sets the niceness of the calling thread, and so of the threads that it starts from now on. It can't be taken back."""
    if nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def run_giving_way(nice: int, work: Callable[[], T]) -> T:
    """Does the work in a thread of this niceness, which threads that it starts keep; 0 does it here."""
    if not nice:
        return work()
    with ThreadPoolExecutor(1, initializer=give_way, initargs=(nice,)) as executor:
        return executor.submit(work).result()

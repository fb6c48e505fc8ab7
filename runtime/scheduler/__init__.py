"""Many requests at once: each has a budget, a selector, sampling and a deadline of its own, and all share one KV cache."""

from foveate.runtime.scheduler.engine import Engine
from foveate.runtime.scheduler.options import EngineOptions, EngineStats
from foveate.runtime.scheduler.ticket import Ticket

__all__ = ["Engine", "EngineOptions", "EngineStats", "Ticket"]

"""Load on a server that speaks the OpenAI API: how long clients wait, and how much is answered."""

from foveate.bench.plan import BenchPlan, Load
from foveate.bench.results import Benchmark, Figures, LoadPoint, Sent

__all__ = ["BenchPlan", "Benchmark", "Figures", "Load", "LoadPoint", "Sent"]

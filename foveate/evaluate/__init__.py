"""How many answers stay right with fewer visual tokens: accuracy by selector and keep ratio, on a user's own questions.

`evaluate` asks in memory; `evaluate_bundle` keeps every answer in a folder, goes on after a kill, and writes the report.
"""

from foveate.evaluate.ask import Labels, Plan, Progress, Record, Reply, ask
from foveate.evaluate.folder import ANSWERS, REPORTS
from foveate.evaluate.report import Table, remark, tables
from foveate.evaluate.results import Group, Results, Row, retention_curve, summarise
from foveate.evaluate.run import evaluate, evaluate_bundle
from foveate.evaluate.statistics import Estimate, difference_points, retained, stay, wilson

__all__ = [
    "ANSWERS",
    "REPORTS",
    "Estimate",
    "Group",
    "Labels",
    "Plan",
    "Progress",
    "Record",
    "Reply",
    "Results",
    "Row",
    "Table",
    "ask",
    "difference_points",
    "evaluate",
    "evaluate_bundle",
    "remark",
    "retained",
    "retention_curve",
    "stay",
    "summarise",
    "tables",
    "wilson",
]

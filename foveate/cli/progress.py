"""The progress bar of long commands: with the time that remains on a terminal, quiet in a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """Shows `done` of `total`. It starts where an earlier run ended, so that the time left is right.

    Args:
        what: is done.
        ticking: redraw the clock meanwhile; what this process measures would feel that.
    """

    def __init__(self, what: str, ticking: bool = True) -> None:
        console = Console(stderr=True)
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=console, disable=not console.is_terminal, speed_estimate_period=600, auto_refresh=ticking
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", total=total, completed=done)
        self._progress.update(self._task, completed=done, refresh=True)

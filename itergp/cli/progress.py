"""``FitProgress``: how far a fit has come, in the words of someone with a table."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from itergp.records import Listener

_CHOOSING, _LEARNING, _CONCLUDING = "choosing a model", "learning", "preparing predictions"
_STAGES = {"structures": _CHOOSING}  # all others are steps of learning


class FitProgress(Listener):
    """Bars for what a fit does one after another, erased in the end: a context manager, and a listener of the fit.

    Each says how much of it is done, how long that took and about how long the rest will take. Nothing is drawn where standard
    error is no terminal: in a file or a pipe, bars are noise.

    Args:
        enabled: Draw nothing when False.
        console: Where to draw; default standard error.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=len(_CONCLUDING))),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._task: TaskID | None = None
        self._total = 0

    def __enter__(self) -> FitProgress:
        """Starts drawing."""
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops drawing, and leaves nothing behind."""
        if not self._progress.disable:
            self._progress.stop()

    def show(self, description: str, total: int | None = None) -> None:
        """Begins with something, of so many parts, if that is known; what was shown before is over."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._total = total or 0
        done, left = ("", "") if total is None else (f"0 of {total}", "left")
        self._task = self._progress.add_task(description, total=total, done=done, left=left)

    def begin(
        self, stage: str, *, unit: str = "pass", total: int | None = None, tolerance: float | None = None
    ) -> None:
        """Begins to choose or to learn."""
        self.show(_STAGES.get(stage, _LEARNING), total)

    def advance(self, stage: str, done: int) -> None:
        """So much is done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, done=f"{done} of {self._total}")

    def end(self, stage: str) -> None:
        """What is left is neither chosen nor learned, and has no parts."""
        self.show(_CONCLUDING)

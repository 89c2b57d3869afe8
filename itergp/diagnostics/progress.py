"""``ProgressBar``: how far a solve, learning or a prediction has come, in a terminal or a notebook."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from itergp.records import FitRecord, Listener, Record, TraceRecord

_DELAY = 2.0  # seconds before a bar that nobody asked for is drawn


class ProgressBar(Listener):
    """A bar for each stage: a context manager that draws between its beginning and its end.

    That of a solve grows with the logarithm of the certified gap on its way to the tolerance, others with what is done of
    their total.

    Args:
        enabled: Draw nothing when False; None to draw after two seconds, if standard error is a terminal.
        console: Where to draw; default standard error.
        transient: Erase all bars at the end.
    """

    def __init__(self, *, enabled: bool | None = True, console: Console | None = None, transient: bool = False) -> None:
        self._delay = _DELAY if enabled is None else 0.0
        self._drawn_from = math.inf
        enabled = sys.stderr.isatty() if enabled is None else enabled
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            _RemainingColumn(),
            console=console or Console(stderr=True),
            transient=transient,
            disable=not enabled,
        )
        self._tasks: dict[str, TaskID] = {}
        self._units: dict[str, str] = {}
        self._totals: dict[str, int | None] = {}
        self._tolerances: dict[str, float] = {}
        self._farthest: dict[str, float] = {}  # distance to the mode that a solve started from
        self._values: dict[str, str] = {}  # of the objective that is learned

    def __enter__(self) -> ProgressBar:
        """Starts drawing."""
        self._drawn_from = time.monotonic() + self._delay
        self._draw()
        return self

    def _draw(self) -> None:
        """Starts drawing once it is time."""
        if time.monotonic() >= self._drawn_from:
            self._drawn_from = math.inf
            self._progress.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops drawing; the last line stays."""
        if not self._progress.disable:  # rich 14.0 and older write a line also where none was drawn
            self._progress.stop()

    def begin(
        self, stage: str, *, unit: str = "pass", total: int | None = None, tolerance: float | None = None
    ) -> None:
        """Begins a bar; one without a unit only says that something is going on."""
        self._draw()
        self._farthest.pop(stage, None)
        self._values.pop(stage, None)
        self._units[stage], self._totals[stage] = unit, total
        self._tolerances[stage] = max(tolerance or 0.0, 1e-300)
        whole = 1.0 if total is None else float(total)
        text = f"{unit}   0" if total is None else f"{0:>3}/{total} {unit}"
        self._tasks[stage] = self._progress.add_task(
            stage, total=whole if unit else None, text=text if unit else "", remains=total is not None
        )

    def __call__(self, record: Record) -> None:
        """Shows one step."""
        self._draw()
        if isinstance(record, FitRecord):
            self._values[record.stage] = f"  objective per row {record.objective:>8.4f}"
        else:
            self._step(record)

    def advance(self, stage: str, done: int) -> None:
        """Shows how much is done."""
        self._draw()
        text = f"{done:>3}/{self._totals[stage]} {self._units[stage]}{self._values.get(stage, '')}"
        self._progress.update(self._tasks[stage], completed=done, text=text)

    def end(self, stage: str) -> None:
        """Completes a bar."""
        total = self._totals[stage] or 1.0
        self._progress.update(self._tasks[stage], total=total, completed=total)

    def _step(self, record: TraceRecord) -> None:
        tolerance = self._tolerances[record.stage]
        measure = record.residual / 2 if record.objective_gap is None else record.objective_gap
        start = self._farthest.setdefault(record.stage, max(record.residual / 2, measure, tolerance * 1.001))
        known = math.isfinite(start) and math.isfinite(measure)
        done = math.log(start / max(measure, tolerance)) / math.log(start / tolerance) if known else 0.0
        directions = f"{record.rank:,} directions"
        distance = directions if record.objective_gap is None else f"gap <= {record.objective_gap:9.2e}"
        objective = f"{record.objective:,.2f}"
        self._progress.update(
            self._tasks[record.stage],
            total=1.0 if known else None,  # otherwise the bar only says that something is going on
            completed=min(1.0, max(0.0, done)),
            text=f"pass {record.kernel_passes:>3}  objective {objective:>12}  {distance:>16}",
        )


class _RemainingColumn(TimeRemainingColumn):
    """The time that is left, where every part takes as long as the others."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["remains"] else Text("")

"""Live progress of a solve in a terminal or a notebook."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from itergp.diagnostics.records import TraceRecord


class SolveProgress:
    """A progress bar whose length is the logarithm of the certified gap on its way to the tolerance.

    Args:
        tolerance: Gap at which the solve converges, in nats.
        enabled: Draw nothing when False.
        console: Where to draw; default standard error.
    """

    def __init__(self, tolerance: float, *, enabled: bool = True, console: Console | None = None) -> None:
        self._tolerance = max(tolerance, 1e-300)
        self._start: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            TextColumn(
                "pass {task.fields[passes]:>3}  objective {task.fields[objective]:>12}  {task.fields[distance]:>16}"
            ),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
            disable=not enabled,
        )
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> SolveProgress:
        """Starts drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops drawing; the last line stays."""
        self._progress.stop()

    def stage(self, name: str) -> None:
        """Begins a stage with a bar of its own."""
        self._start.pop(name, None)
        self._tasks[name] = self._progress.add_task(name, total=1.0, passes=0, objective="-", distance="")

    def update(self, record: TraceRecord) -> None:
        """Shows one step."""
        measure = record.residual / 2 if record.objective_gap is None else record.objective_gap
        start = self._start.setdefault(record.stage, max(record.residual / 2, measure, self._tolerance * 1.001))
        known = math.isfinite(start) and math.isfinite(measure)
        done = math.log(start / max(measure, self._tolerance)) / math.log(start / self._tolerance) if known else 0.0
        directions = f"{record.rank:,} directions"
        distance = directions if record.objective_gap is None else f"gap <= {record.objective_gap:9.2e}"
        self._progress.update(
            self._tasks[record.stage],  # type: ignore[arg-type]
            total=1.0 if known else None,  # otherwise the bar only says that something is going on
            completed=min(1.0, max(0.0, done)),
            passes=record.kernel_passes,
            objective=f"{record.objective:,.2f}",
            distance=distance,
        )

    def finish(self, name: str) -> None:
        """Completes a stage's bar."""
        self._progress.update(self._tasks[name], total=1.0, completed=1.0)  # type: ignore[arg-type]

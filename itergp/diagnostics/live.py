"""``Live``: a run as it happens, in a notebook as the dashboard, in a terminal as a table."""

from __future__ import annotations

import io
import math
import sys
import time
from types import TracebackType
from typing import Any, Literal, get_args

from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Table

from itergp.diagnostics.dashboard import dashboard_size, plot_dashboard
from itergp.diagnostics.findings import memory, number
from itergp.diagnostics.trace import Trace
from itergp.errors import InputError
from itergp.records import FitRecord, Listener, Record, TraceData, TraceRecord

Where = Literal["auto", "notebook", "terminal"]

_WIDTH = 24  # characters of a sparkline
_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 6  # hyperparameters in the table


class Live(Listener):
    """Shows a run while it happens: a context manager, and inside it a callback of ``model.condition`` and ``itergp.fit``.

    Drawing waits between two pictures for as long as keeps it to a given share of the time.

    Args:
        where: ``"notebook"`` draws the dashboard and needs matplotlib and IPython, ``"terminal"`` a table; ``"auto"``
            looks where it is.
        share: Largest share of the time that goes into drawing.
        console: Where a terminal's table goes; default standard error.

    Raises:
        InputError: If a setting is not valid, or what a notebook needs is not installed.

    Attributes:
        trace: What was seen so far.

    Examples:
        >>> import itergp
        >>> def learn(model):
        ...     with itergp.diagnostics.Live() as live:
        ...         return itergp.fit(model, callback=live)
    """

    def __init__(self, where: Where = "auto", *, share: float = 0.05, console: Console | None = None) -> None:
        if where not in get_args(Where):
            raise InputError(f"`where` must be one of {get_args(Where)}. Got {where!r}.")
        if not 0.0 < share <= 1.0:
            raise InputError(f"`share` must be in (0, 1]. Got {share}. Leave it out for 0.05.")
        self.trace = Trace()
        self._share = share
        self._screen: _Terminal | _Notebook | None = None
        self._console = console
        self._in_notebook = where == "notebook" or (where == "auto" and _notebook_at_hand())
        self._next = 0.0

    def __enter__(self) -> Live:
        """Begins to show."""
        self._screen = _Notebook() if self._in_notebook else _Terminal(self._console)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shows the last state, which stays."""
        if self._screen is not None:
            if self.trace.records or self.trace.learning:
                self._screen.show(self.trace)
            self._screen.close()
        self._screen = None

    def __call__(self, record: Record) -> None:
        """Takes a record, and shows it when it is time.

        Raises:
            InputError: Outside of ``with``.
        """
        if self._screen is None:
            raise InputError("`Live` must be entered before it is called. Write `with Live() as live:` around the run.")
        self.trace.add(record)
        begun = time.perf_counter()
        if begun < self._next:
            return
        self._screen.show(self.trace)
        now = time.perf_counter()
        self._next = now + (now - begun) * (1.0 / self._share - 1.0)


# --------------------------------------------------------------------- screens
class _Terminal:
    def __init__(self, console: Console | None) -> None:
        self._live = RichLive(console=console or Console(stderr=True), auto_refresh=False)
        self._live.start()

    def show(self, trace: TraceData) -> None:
        self._live.update(live_table(trace), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _Notebook:
    """The dashboard as one picture that is replaced."""

    def __init__(self) -> None:
        try:
            from IPython.display import Image, display
            from matplotlib.figure import Figure
        except ImportError as error:
            raise InputError(
                f"A notebook's dashboard needs matplotlib and IPython. Got an error: {error}. Install them with "
                "`pip install itergp[plot] ipython`, or use where='terminal'."
            ) from error
        self._image, self._display, self._figure = Image, display, Figure
        self._handle: Any = None

    def show(self, trace: TraceData) -> None:
        figure = self._figure(figsize=dashboard_size(trace), layout="constrained")
        plot_dashboard(trace, figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        image = self._image(data=buffer.getvalue())
        if self._handle is None:
            self._handle = self._display(image, display_id=True)
        else:
            self._handle.update(image)

    def close(self) -> None:
        """The picture stays."""


def _notebook_at_hand() -> bool:
    """Whether this runs in a kernel of Jupyter; IPython is not imported to find out."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and "matplotlib" in sys.modules


# ----------------------------------------------------------------------- table
def live_table(trace: TraceData) -> Table:
    """The state of a run in a few lines of text, with the course of its most important numbers.

    Args:
        trace: So far.
    """
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    if trace.learning is not None:
        _add_learning(table, trace.learning.records)
    if trace.records:
        _add_solve(table, trace.records)
    return table


def _add_learning(table: Table, records: list[FitRecord]) -> None:
    last = records[-1]
    own = [record.objective for record in records if record.stage == last.stage]
    table.add_row("learning", f"{last.stage}, evaluation {last.iteration + 1}", f"{last.seconds:.1f} s")
    table.add_row("objective per row", f"{last.objective:.4f}", sparkline(own))
    table.add_row("hyperparameters", "logarithms if positive", "")
    values = [(name, i, len(v)) for name, v in last.parameters.items() for i in range(len(v))]
    for name, i, count in values[:_SHOWN]:
        course = [record.parameters[name][i] for record in records]
        label = name.replace("raw_", "").rsplit(".", 1)[-1] + (f"[{i}]" if count > 1 else "")
        table.add_row(label, f"{course[-1]:.3f}", sparkline(course))
    if len(values) > _SHOWN:
        table.add_row("", f"and {len(values) - _SHOWN} more", "")


def _add_solve(table: Table, records: list[TraceRecord]) -> None:
    last = records[-1]
    own = [record for record in records if record.stage == last.stage]
    gaps = [record.objective_gap for record in own if record.objective_gap is not None]
    table.add_row("stage", last.stage, f"{last.seconds:.1f} s, {memory(last.memory)} at most")
    table.add_row("kernel passes", f"{last.kernel_passes}", f"{number(last.kernel_seconds)} s in kernel products")
    table.add_row("objective", f"{last.objective:,.2f}", sparkline([record.objective for record in own]))
    if gaps:
        shown = f"<= {gaps[-1]:.2e}" if math.isfinite(gaps[-1]) else "-"
        table.add_row("certified gap", shown, sparkline([math.log(max(gap, 1e-300)) for gap in gaps]))
    norms = [math.hypot(*record.class_residuals) for record in own if record.class_residuals]
    if norms:
        table.add_row("residual", f"{norms[-1]:.2e}", sparkline([math.log(max(norm, 1e-300)) for norm in norms]))
    table.add_row("search space", f"{last.rank}", sparkline([float(record.rank) for record in own]))
    step = f"{last.newton_steps} Newton steps, shortest {number(last.step_length)}"
    table.add_row("last pass", step, last.event)


def sparkline(values: list[float]) -> str:
    """The course of some numbers as a line of block characters, the last 24 of them.

    >>> sparkline([0.0, 1.0, 2.0, 7.0])
    '▁▂▃█'
    """
    shown = [value for value in values if math.isfinite(value)][-_WIDTH:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(_BARS[round((len(_BARS) - 1) * (value - low) / span)] if span else _BARS[0] for value in shown)

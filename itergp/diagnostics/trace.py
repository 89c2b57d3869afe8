"""``Trace``: what happened during a solve, with its readers: an explanation in words and a dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itergp.diagnostics.dashboard import plot_dashboard
from itergp.diagnostics.explain import Explanation, explain
from itergp.records import TraceData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Trace(TraceData):
    """What happened during a solve, and, after ``itergp.fit``, during learning before it; explained and plotted on request.

    See ``itergp.records.TraceData`` for what it holds and how it is written and read.

    Examples:
        >>> from itergp.records import TraceRecord
        >>> trace = Trace([TraceRecord("laplace", 1, 0.1, 12.5, 0.5, 1.0, 3, 2, 1.0)])
        >>> trace.explain().limit
        'unfinished'
    """

    @classmethod
    def of(cls, data: TraceData) -> Trace:
        """A trace with readers: itself if it has them, otherwise one that shares what it holds."""
        if isinstance(data, Trace):
            return data
        trace = cls()
        vars(trace).update(vars(data))
        return trace

    def explain(self) -> Explanation:
        """What limited the run and what to change, in words; the most important first."""
        return explain(self)

    def plot(self, figure: Figure | None = None) -> dict[str, Axes]:
        """One dashboard: certificate, residuals, steps, search space, spectrum, time, learning, and the explanation.

        Args:
            figure: Where to draw; default a new one of ``matplotlib.pyplot``, which a notebook shows by itself.

        Returns:
            The axes by name; ``trace.plot()["gap"].figure.savefig("run.png")`` saves it.

        Raises:
            InputError: If matplotlib is not installed.
        """
        return plot_dashboard(self, figure)

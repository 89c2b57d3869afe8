"""Functions of the user's that are called while a solve runs, and Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from itergp.parallel import ALL_ROWS, Interrupt, RowPartition
from itergp.posterior.solution import Solution
from itergp.posterior.status import Reason, Status
from itergp.records import Listener
from itergp.solvers.run.budget import Budget


@dataclass(frozen=True)
class Callbacks:
    """Who is told, and who may end the solve by raising ``KeyboardInterrupt``.

    Attributes:
        listener: Hears of stages and steps.
        on_posterior: Is handed posteriors on the way, or None.
        interrupt: Whether a process was asked to stop.
        rows: Which rows are here: where they are divided, all processes stop at the next common point.
    """

    listener: Listener = field(default_factory=Listener)
    on_posterior: Callable[[Solution], None] | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    rows: RowPartition = ALL_ROWS

    def call(self, function: Callable[[Any], None], argument: Any) -> None:
        """Calls a function of the user's, who may stop the solve from it: with others at work, at the next common point."""
        try:
            function(argument)
        except KeyboardInterrupt:
            if not self.rows.sharded:
                raise
            self.interrupt.pressed = True

    def publish(self, solution: Solution) -> Solution:
        """Hands out the posterior of a stage that another follows; it is interrupted if the user stops there."""
        if self.on_posterior is None:
            return solution
        try:
            self.call(self.on_posterior, solution)
        except KeyboardInterrupt:
            self.interrupt.pressed = True
        return solution.with_report(status=Status(Reason.INTERRUPTED)) if self.pressed() else solution

    def pressed(self) -> bool:
        """Whether any process was asked to stop."""
        return self.rows.all_reduce_any(self.interrupt.pressed)

    def late(self, budget: Budget) -> bool:
        """Whether the time is up, by the clock of any process."""
        return budget.time_limit is not None and self.rows.all_reduce_any(budget.time_left() <= 0.0)

    def early_stop(self, budget: Budget) -> Status | None:
        """Why a stage should end here, by Ctrl-C or by the clock of any process: all stop together."""
        if self.pressed():
            return Status(Reason.INTERRUPTED)
        return Status(Reason.TIME, f"{budget.seconds():.1f} s") if self.late(budget) else None

"""What a checkpoint holds of a run beside its solver's state, and how a run goes on from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from itergp.errors import InputError
from itergp.persistence import Checkpointer, StateDict, from_state, to_state
from itergp.persistence.codec import has_state
from itergp.posterior.problem import Problem
from itergp.records import StageRecord, TraceData, TraceRecord
from itergp.solvers.protocol import Solver
from itergp.solvers.run.budget import Budget
from itergp.solvers.run.rounds import Damping

BEFORE = -1  # in the sequence of solvers: the turn of the one whose mode the first begins with
_SOLVER = "state"  # in a checkpoint


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        stage: 0 for the Laplace mode, then the variational stages.
        turn: Which solver of the sequence is at work, or ``BEFORE``.
        round: Rounds of the variational posterior before this one.
        marginals: Those that the site of the present stage was made from, or that of the next; None before.
        damping: Of rounds that are stages.
    """

    stage: int = 0
    turn: int = 0
    round: int = 0
    marginals: Tensor | None = None
    damping: Damping = field(default_factory=Damping)


@dataclass(frozen=True)
class RunState:
    """Where a run is, the state of its solver aside.

    Attributes:
        position: How far it has come.
        kernel_passes: Passes so far.
        kernel_entries: Kernel entries evaluated so far.
        kernel_seconds: Seconds in kernel products so far.
        seconds: Seconds so far.
        records: One per step so far.
        stages: One per stage so far.
        phase_seconds: Seconds by phase so far.
    """

    position: Position
    kernel_passes: int
    kernel_entries: int
    kernel_seconds: float
    seconds: float
    records: list[TraceRecord]
    stages: list[StageRecord]
    phase_seconds: dict[str, float]


class Resumer:
    """Saves a running solve, and lets one go on that was saved.

    Args:
        checkpointer: Where to save it, or None.
        solver: The solver.

    Raises:
        InputError: If the solver's state cannot be saved although it should.
    """

    def __init__(self, checkpointer: Checkpointer | None, solver: Solver[Any]) -> None:
        self.checkpointer = checkpointer
        self._saved: StateDict | None = None
        self._earlier: RunState | None = None
        if checkpointer is not None:
            require_resumable(solver)
            self._saved = checkpointer.checkpoint_state
        if self._saved is not None:
            self._earlier = from_state(RunState, self._saved)

    @property
    def waiting(self) -> bool:
        """Whether an earlier run's state waits to be continued."""
        return self._saved is not None

    def position(self) -> Position:
        """Where the earlier run was, or the beginning."""
        return Position() if self._earlier is None else self._earlier.position

    def budget(self, budget: Budget) -> Budget:
        """The budget, less what the earlier run used."""
        used = self._earlier
        if used is None:
            return budget
        return budget.resumed(used.kernel_passes, used.kernel_entries, used.kernel_seconds, used.seconds)

    def restore(self, trace: TraceData) -> None:
        """Gives a trace the records of the earlier run."""
        if (earlier := self._earlier) is not None:
            trace.records, trace.stages, trace.phase_seconds = earlier.records, earlier.stages, earlier.phase_seconds

    def state(self, solver: Solver[Any], problem: Problem, budget: Budget) -> Any:
        """The state of the earlier run, which is used once; what it takes to make it again was counted then."""
        saved, self._saved = self._saved, None
        assert saved is not None
        assert solver.state_type is not None
        with budget.uncounted():
            return from_state(solver.state_type, saved.section(_SOLVER), problem)

    def due(self) -> bool:
        """Whether it is time to save the present state."""
        return self.checkpointer is not None and self.checkpointer.due()

    def save(self, state: Any, position: Position, budget: Budget, trace: TraceData) -> None:
        """Hands the checkpointer all that another process needs to go on after this step, if there is one."""
        if self.checkpointer is None:
            return
        run = RunState(
            position=position,
            kernel_passes=budget.passes,
            kernel_entries=budget.entries,
            kernel_seconds=budget.kernel_seconds,
            seconds=budget.seconds(),
            records=trace.records,
            stages=trace.stages,
            phase_seconds=trace.phase_seconds,
        )
        saved = to_state(run)
        saved.add_section(_SOLVER, to_state(state))
        self.checkpointer.save(saved)


def require_resumable(solver: Solver[Any]) -> None:
    """A checkpoint needs a solver that says the class of its states, and so do all that it takes turns with.

    Raises:
        InputError: If it does not, or states of that class cannot be saved.
    """
    if not all(has_state(part.state_type) for part in (solver, *solver.sequence)):
        raise InputError(
            "`checkpoint` needs a solver whose attribute `state_type` is the class of its states, a dataclass. Got "
            f"{type(solver).__name__}, which has none. Leave `checkpoint` out, or use SubspaceNewton."
        )

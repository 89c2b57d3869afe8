"""What a checkpoint holds of a run beside its solver's state, and how a run goes on from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from itergp.posterior.problem import Problem
from itergp.records import StageRecord, TraceData, TraceRecord
from itergp.solvers.packing import Keeper, Packed, require_resumable
from itergp.solvers.protocol import Solver
from itergp.solvers.run.budget import Budget
from itergp.solvers.run.rounds import Damping


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        stage: 0 for the Laplace mode, then the variational stages.
        turn: Which solver of the sequence is at work.
        round: Rounds of the variational posterior before this one.
        marginals: Those that the site of the present stage was made from, or that of the next; None before.
        damping: Of rounds that are stages.
    """

    stage: int = 0
    turn: int = 0
    round: int = 0
    marginals: Tensor | None = None
    damping: Damping = field(default_factory=Damping)


class Resumer:
    """Keeps a running solve, and lets one go on that was kept.

    Args:
        keeper: Where to keep it, or None.
        solver: The solver.

    Raises:
        InputError: If the solver's state cannot be kept although it should.
    """

    def __init__(self, keeper: Keeper | None, solver: Solver[Any]) -> None:
        self.keeper = keeper
        self._earlier: Packed | None = None
        if keeper is not None:
            require_resumable(solver)
            self._earlier = keeper.earlier

    @property
    def waiting(self) -> bool:
        """Whether an earlier run's state waits to be continued."""
        return self._earlier is not None

    def position(self) -> Position:
        """Where the earlier run was, or the beginning."""
        if self._earlier is None:
            return Position()
        values = self._earlier.values
        damping = Damping(*values["damping"])
        marginals = self._earlier.arrays.get("covariance")
        return Position(values["stage"], values["turn"], marginals=marginals, damping=damping)

    def budget(self, budget: Budget) -> Budget:
        """The budget, less what the earlier run used."""
        if self._earlier is None:
            return budget
        used = self._earlier.values
        return budget.resumed(used["kernel_passes"], used["kernel_entries"], used["kernel_seconds"], used["seconds"])

    def restore(self, trace: TraceData) -> None:
        """Gives a trace the records of the earlier run."""
        if self._earlier is None:
            return
        values = self._earlier.values
        trace.records = [
            TraceRecord(**(r | {"class_residuals": tuple(r["class_residuals"])})) for r in values["records"]
        ]
        trace.phase_seconds = dict(values["phase_seconds"])
        trace.stages = [StageRecord(**stage) for stage in values["stages"]]

    def state(self, solver: Solver[Any], problem: Problem) -> Any:
        """The state of the earlier run, which is used once."""
        earlier, self._earlier = self._earlier, None
        assert earlier is not None
        assert solver.resumable is not None
        return solver.resumable.unpack(problem, earlier.part("state"))

    def due(self) -> bool:
        """Whether it is time to keep the present state."""
        return self.keeper is not None and self.keeper.due()

    def keep(self, solver: Solver[Any], state: Any, position: Position, budget: Budget, trace: TraceData) -> None:
        """Hands the keeper all that another process needs to go on after this step, if there is one."""
        if self.keeper is None:
            return
        values = {
            "stage": position.stage,
            "turn": position.turn,
            "kernel_passes": budget.passes,
            "kernel_entries": budget.entries,
            "kernel_seconds": budget.kernel_seconds,
            "seconds": budget.seconds(),
            "records": trace.to_dicts(),
            "stages": [asdict(stage) for stage in trace.stages],
            "phase_seconds": trace.phase_seconds,
            "damping": [position.damping.share, position.damping.last],
        }
        packed = Packed({} if position.marginals is None else {"covariance": position.marginals}, values)
        assert solver.resumable is not None
        packed.add("state", solver.resumable.pack(state))
        self.keeper.keep(packed)

"""One stage: steps until the solver, a budget or the user ends it, then the covariance, then rounds where they cost no pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from itergp.errors import SolverError
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution, is_finite
from itergp.posterior.status import Reason, Status
from itergp.solvers.few_values import solver_of_start
from itergp.solvers.protocol import Solver
from itergp.solvers.run import rounds
from itergp.solvers.run.budget import UNLIMITED, Budget
from itergp.solvers.run.callbacks import Callbacks
from itergp.solvers.run.recording import Recorder
from itergp.solvers.run.resuming import BEFORE, Position, Resumer

# A variational solve begins at the Laplace mode, which only has to be near: its own stage finishes the job.
_PRELIMINARY_FACTOR = 100.0
_PRELIMINARY_RESIDUAL = 0.3  # posterior deviations
PASSES_OF_A_STAGE = 2
_PRELIMINARY_TIME = 0.5  # share of the time limit


@dataclass(frozen=True)
class Run:
    """One call of ``solve``: what its stages share.

    Attributes:
        solver: The solver.
        budget: What all stages together may use.
        recorder: Writes the trace.
        callbacks: The user's functions.
        resumer: Saves the state.
        position: How far the run has come; changed as it goes.
        refines: Whether the last stage ends with rounds of its own.
    """

    solver: Solver[Any]
    budget: Budget
    recorder: Recorder
    callbacks: Callbacks
    resumer: Resumer
    position: Position
    refines: bool = False

    def late(self) -> bool:
        """Whether the time limit has passed, in any process."""
        return self.callbacks.late(self.budget)


class Stage:
    """One site, solved to its end.

    Args:
        run: The run.
        problem: With the site.
        warm_start: An earlier solution, or None.
        final: Whether no other stage follows.
    """

    def __init__(self, run: Run, problem: Problem, warm_start: Solution | None, *, final: bool) -> None:
        self.shared = run
        self.problem = problem
        self.warm_start = warm_start
        self.final = final
        self.budget = run.budget.for_stage(1.0 if final else _PRELIMINARY_TIME)
        self._recorded: Any = None  # the state of the last record
        # What goes on there goes on, whatever is known in this process.
        known = None if run.position.turn == BEFORE else warm_start
        self._start = solver_of_start(run.solver, problem, known)

    # ------------------------------------------------------------------- who is at work
    @property
    def _solvers(self) -> tuple[Solver[Any], ...]:
        solver = self.shared.solver
        return (solver if self.final else solver.loosened(_PRELIMINARY_FACTOR)).sequence

    @property
    def solver(self) -> Solver[Any]:
        """The solver whose turn it is, as loose as the stage."""
        return self._at_work(self._solvers)

    @property
    def precise(self) -> Solver[Any]:
        """The same with the user's tolerance."""
        return self._at_work(self.shared.solver.sequence)

    def _at_work(self, sequence: tuple[Solver[Any], ...]) -> Solver[Any]:
        turn = self.shared.position.turn
        if turn == BEFORE:
            assert self._start is not None
            return self._start
        return sequence[turn]

    # ----------------------------------------------------------------------- the stage
    def run(self) -> Solution:
        """Runs the stage."""
        try:
            return self._run()
        except torch.linalg.LinAlgError as error:  # at its start, or in its covariance
            raise self._not_factorised(self.problem, self.warm_start) from error

    def _run(self) -> Solution:
        run, problem = self.shared, self.problem
        run.callbacks.listener.begin(problem.site.name, tolerance=run.solver.tolerance * problem.num_rows)
        with run.recorder.phase("mode"):
            state, status = self._mode()
        with run.recorder.phase("covariance"):
            solution = self._conclude(state, status)
        run.callbacks.listener.end(problem.site.name)
        solution = solution.with_report(seconds=run.budget.seconds())
        return solution if self.final else run.callbacks.publish(solution)

    def _conclude(self, state: Any, status: Status) -> Solution:
        """The solution at the end of the steps: the covariance, and what rounds make of it."""
        run, problem, residual = self.shared, self.problem, None
        affordable = self.budget.passes_left() > 0
        posterior, status = self._finish(state, status, affordable=affordable)
        self._require_finite_covariance(state, posterior)
        status = self._renewed(posterior, status)
        refines = run.refines and status.reason is not Reason.INTERRUPTED
        if self.final and refines and affordable:
            problem, posterior, status, residual = self._rounds(state, posterior)
        solution = run.recorder.end_of_stage(problem, posterior, status)
        solution = solution.with_report(variational_residual=residual)
        if not self.final and refines and posterior.precision.rank > 0:
            try:
                run.position.marginals = self._near_marginals(state, posterior)
            except KeyboardInterrupt:
                solution = solution.with_report(status=Status(Reason.INTERRUPTED))
        return solution

    def _finish(self, state: Any, status: Status, *, affordable: bool) -> tuple[Posterior, Status]:
        if not affordable:
            return self._mean_only(state), status
        try:
            return self.solver.finish(self.problem, state, final=self.final), status
        except KeyboardInterrupt:
            if self.shared.position.stage > 0 and self.warm_start is not None:  # the stage before has a covariance
                raise
            return self._mean_only(state), Status(Reason.INTERRUPTED, "in the covariance, which is the prior's")

    def _renewed(self, posterior: Posterior, status: Status) -> Status:
        """The status once the covariance's pass has renewed the certificate of a space that could not grow."""
        problem, tolerance = self.problem, self.solver.tolerance
        per_row = 0.5 * posterior.norm_squared / problem.num_rows
        exhausted = status.reason in (Reason.PRECISION, Reason.POLICY)
        if exhausted and per_row <= tolerance:
            reason = Reason.CONVERGED if problem.site.log_concave else Reason.STATIONARY
            return Status(reason, f"gap {per_row:.2g} nats per row, tolerance {tolerance:.2g}")
        return status

    # ----------------------------------------------------------------------- the mode
    def _mode(self) -> tuple[Any, Status]:
        """Steps of all solvers in turn: the last state, and why the last of them ended."""
        run, last = self.shared, len(self._solvers) - 1
        resumed = run.resumer.waiting
        state = run.resumer.state(self.solver, self.problem, run.budget) if resumed else self._begin(self.warm_start)
        self._check(state, None)
        # A state that was kept when it was interrupted may be the last one.
        status = self.solver.status(self.problem, state, self._reserving()) if resumed else None
        state, status = self._steps(state, status)
        while run.position.turn < last and status.reason not in (Reason.TIME, Reason.INTERRUPTED):
            try:
                state = self._hand_over(state, status)
            except KeyboardInterrupt:
                return state, Status(Reason.INTERRUPTED)
            run.position.turn += 1
            self._check(state, None)
            state, status = self._steps(state, None)
        return state, status

    def _begin(self, warm_start: Solution | None) -> Any:
        self.shared.position.turn = 0 if self._start is None else BEFORE
        return self.solver.init(self.problem, warm_start)

    def _hand_over(self, state: Any, status: Status) -> Any:
        """The first state of the next solver, from where this one came to."""
        mean = self.shared.recorder.solution(self.problem, self._mean_only(state), status, evidence=False)
        following = self._solvers[self.shared.position.turn + 1]
        return self._guarded(self.problem, state, lambda: following.init(self.problem, mean))

    def _reserving(self) -> Budget:
        """The budget less passes for this stage's covariance and the certificate after its rounds, and for the next stage."""
        run = self.shared
        own = int(self.solver.gives_covariance) + int(self.final and run.refines)
        reserved = own if self.final else max(own + PASSES_OF_A_STAGE, (run.budget.max_passes or 0) // 2)
        return replace(self.budget, reserved=reserved)

    def _steps(self, state: Any, status: Status | None) -> tuple[Any, Status]:
        """Steps until the solver, a budget or the user ends it: the state, and why it ended."""
        run, problem, solver, budget = self.shared, self.problem, self.solver, self._reserving()
        try:
            while status is None:
                state = self._step(state, budget)
                self._record(state)
                status = solver.status(problem, state, budget) or run.callbacks.early_stop(budget)
                if status is None:
                    status = self._after_step(state)
                elif status.reason is Reason.INTERRUPTED:  # where Ctrl-C is no exception
                    self._save(state)
        except KeyboardInterrupt:
            status = Status(Reason.INTERRUPTED)
            # What grows in place may have been in the middle of a step: the file then keeps an earlier state.
            if state is self._recorded and run.recorder.is_last(state):
                self._save(state)
        return state, status

    def _after_step(self, state: Any) -> Status | None:
        """Saves and hands out what there is; says whether that took up the time that was left."""
        run = self.shared
        if run.resumer.due():
            self._save(state)
        if run.callbacks.on_posterior is None:
            return None
        running = Status(Reason.RUNNING)
        early = run.recorder.solution(self.problem, self._mean_only(state), running, evidence=False)
        run.callbacks.call(run.callbacks.on_posterior, early)
        return run.callbacks.early_stop(self.budget)

    def _save(self, state: Any) -> None:
        run = self.shared
        run.resumer.save(state, run.position, run.budget, run.recorder.trace)

    def _record(self, state: Any, problem: Problem | None = None) -> None:
        record = self.shared.recorder.step(problem or self.problem, state, self.shared.position.round)
        self._recorded = state
        self.shared.callbacks.call(self.shared.callbacks.listener, record)

    # ------------------------------------------------------------------------- rounds
    def _near_marginals(self, state: Any, posterior: Posterior) -> Tensor:
        """Marginals near to the last ones, from a covariance that is cheap: the last stage then needs few rounds."""
        settled = rounds.settle(
            self._taking_rounds(),
            self.problem,
            state,
            posterior,
            _PRELIMINARY_RESIDUAL,
            self._refine,
            self._keeps_last_stage,
            self.shared.position.damping,
        )
        return settled.posterior.latent_covariance

    def _rounds(self, state: Any, posterior: Posterior) -> tuple[Problem, Posterior, Status, float]:
        """Rounds until the posterior is stationary and its mean certified."""
        wanted = rounds.residual_tolerance(self.problem, self.precise.tolerance)
        try:
            settled = rounds.settle(
                self._taking_rounds(),
                self.problem,
                state,
                posterior,
                wanted,
                self._refine,
                self._early_stop,
                self.shared.position.damping,
                self.shared.position.marginals,
                self._advance,
            )
        except KeyboardInterrupt:  # the posterior of the frozen problem is whole
            return self.problem, posterior, Status(Reason.INTERRUPTED), float("inf")
        return settled.problem, settled.posterior, self._ended(settled), settled.residual

    def _taking_rounds(self) -> rounds.Rounds[Any]:
        taking = self.precise.rounds
        assert taking is not None
        return taking

    def _early_stop(self) -> Status | None:
        return self.shared.callbacks.early_stop(self.budget)

    def _keeps_last_stage(self) -> Status | None:
        """Ends rounds whose covariance could take a pass, when its actions have become useless, that the last stage needs."""
        if self.budget.passes_left() <= PASSES_OF_A_STAGE:
            return Status(Reason.PASSES)
        return self._early_stop()

    def _refine(self, problem: Problem, state: Any) -> Any:
        after = self._guarded(problem, state, lambda: self._taking_rounds().refine(problem, state))
        self._check(after, state, problem)
        return after

    def _advance(self, problem: Problem, state: Any, certify: bool) -> tuple[Any, Status | None]:
        """Certifies a state, or takes a step from it; and why nothing else may follow."""
        if self.budget.passes_left() <= 0:
            return state, Status(Reason.PASSES, f"{self.budget.passes} passes, before the mean was certified")
        self.shared.position.round += 1
        if certify:
            after = self._taking_rounds().certify(problem, state)
            self._record(after, problem)
            return after, self._early_stop()
        after = self._step(state, self.budget, problem)
        self._record(after, problem)
        reached = self.precise.status(problem, after, self.budget) or self._early_stop()
        return after, None if reached is not None and reached.converged else reached

    def _ended(self, settled: rounds.Settled) -> Status:
        """Why rounds ended: converged only where the mean is certified and the posterior stationary."""
        if settled.status is not None:
            return settled.status
        if not settled.stationary:
            return Status(Reason.ROUNDS, f"residual {settled.residual:.2g} posterior deviations")
        problem = settled.problem
        per_row = 0.5 * settled.posterior.norm_squared / problem.num_rows
        detail = f"gap {per_row:.2g} nats per row, tolerance {self.precise.tolerance:.2g}"
        if per_row == float("inf"):
            return self.precise.status(problem, settled.state, UNLIMITED) or Status(Reason.SETTLED)
        return Status(Reason.CONVERGED if problem.site.log_concave else Reason.STATIONARY, detail)

    # --------------------------------------------------------------------- what must hold
    def _step(self, state: Any, budget: Budget, problem: Problem | None = None) -> Any:
        at, solver = problem or self.problem, self.solver
        after = self._guarded(at, state, lambda: solver.step(at, state, budget))
        self._check(after, state, at)
        return after

    def _guarded(self, problem: Problem, state: Any, move: Callable[[], Any]) -> Any:
        try:
            return move()
        except torch.linalg.LinAlgError as error:
            failed = self._failed(problem, state, Status(Reason.FAILED, "a matrix could not be factorised"))
            raise self._not_factorised(problem, failed) from error

    def _not_factorised(self, problem: Problem, last: Solution | None) -> SolverError:
        """The error for a matrix that is indefinite or not finite, with the last good posterior."""
        return SolverError(
            f"A matrix of the {problem.site.name} step must be positive definite and finite. Got one that is not "
            f"after {self.budget.passes} kernel passes. Check that the kernel is positive definite, its hyperparameters "
            "and the scale of inputs and targets, or use float64; the error's `solution` is the last good posterior.",
            last,
        )

    def _check(self, state: Any, previous: Any, problem: Problem | None = None) -> None:
        at = problem or self.problem
        if not at.rows.all_reduce_any(not state.finite):
            return
        last = self.warm_start
        if previous is not None:
            last = self._failed(at, previous, Status(Reason.FAILED, "a NaN or infinity appeared"))
        raise SolverError(
            f"The {at.site.name} objective or one of its derivatives became NaN or infinite after {self.budget.passes} kernel "
            "passes. They must stay finite. Check the kernel's hyperparameters and the scale of inputs and targets, or use "
            "float64; the error's `solution` is the last good posterior.",
            last,
        )

    def _require_finite_covariance(self, state: Any, posterior: Posterior) -> None:
        if self.problem.rows.all_reduce_any(not is_finite(posterior.latent_covariance, posterior.precision.factor)):
            raise SolverError(
                "The posterior covariance must be finite. Got NaN or infinity. Check that the kernel is positive definite, "
                "or use float64; the error's `solution` has the posterior mean with the prior's covariance.",
                self._failed(self.problem, state, Status(Reason.FAILED, "in the covariance")),
            )

    def _failed(self, problem: Problem, state: Any, status: Status) -> Solution:
        return self.shared.recorder.end_of_stage(problem, self._mean_only(state, problem), status)

    def _mean_only(self, state: Any, problem: Problem | None = None) -> Posterior:
        # The covariance is what costs passes, and what a bad curvature would spoil.
        return self.precise.without_covariance().finish(problem or self.problem, state, final=True)

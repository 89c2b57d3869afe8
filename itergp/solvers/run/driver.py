"""The driver: stages, loop, budgets, finite checks, what listeners hear. Solvers only step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from itergp.errors import InputError, SolverError
from itergp.likelihoods import LaplaceSite, Observations, VariationalSite
from itergp.operators import KernelOperator
from itergp.parallel import Interrupt
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Certificate, Solution, is_finite
from itergp.posterior.status import Reason, Status
from itergp.records import Listener, Listeners, StageRecord, TraceData, TraceRecord
from itergp.solvers.packing import Keeper, Packed, require_resumable
from itergp.solvers.protocol import Solver, require_shareable
from itergp.solvers.run import rounds
from itergp.solvers.run.recording import run_settings, spectrum_source, stage_record, step_record

APPROXIMATIONS = ("variational", "laplace")

# A variational solve begins at the Laplace mode, which only has to be near: its own stage finishes the job.
_PRELIMINARY_FACTOR = 100.0
_PRELIMINARY_RESIDUAL = 0.3  # posterior deviations
_PASSES_OF_A_STAGE = 2
_PRELIMINARY_TIME = 0.5  # share of the time limit


def solve(
    operator: KernelOperator,
    mean: Tensor,
    observations: Observations,
    solver: Solver,
    *,
    approximation: str = "variational",
    warm_start: Solution | None = None,
    listeners: Sequence[Callable[[TraceRecord], None]] = (),
    trace: TraceData | None = None,
    on_posterior: Callable[[Solution], None] | None = None,
    checkpoint: Keeper | None = None,
) -> Solution:
    """Finds the posterior.

    Ctrl-C ends a solve early with the posterior so far: of the present stage, or of the one before if it comes while the
    covariance of a later stage is found.

    Args:
        operator: Prior covariance at the training inputs.
        mean: Prior mean ``(N, C)``.
        observations: Targets, weights and likelihood.
        solver: The solver.
        approximation: ``"laplace"``, or ``"variational"``: the Laplace mode, then rounds with expected gradient and curvature
            under the current marginals, until these are the marginals that are returned. A budget of fewer than four kernel
            passes, or a solver that gives no covariance, cannot do that: the result is then the Laplace posterior, and says so.
        warm_start: An earlier solution whose weights and search space are reused.
        listeners: Functions that are called with every record of the trace, or an ``itergp.records.Listener`` each.
        trace: Where records are kept: an empty one, such as ``itergp.diagnostics.Trace()``; default a plain ``TraceData()``.
        on_posterior: Called with the posterior so far after every step that another follows, its covariance the prior's and its
            ELBO not computed (NaN), and with that of every stage that another follows.
        checkpoint: Where to keep the state between steps, and what to begin from if it holds an earlier one.

    Raises:
        InputError: If the approximation is unknown, the rows are divided among processes and the solver, the policy or the
            likelihood cannot do that, or the solver's state cannot be kept although it should.
        SolverError: If a NaN or infinity appears; the error carries the last good solution. In every process, if one is lost.
    """
    if approximation not in APPROXIMATIONS:
        raise InputError(f"`approximation` must be one of {APPROXIMATIONS}. Got {approximation!r}.")
    rows = operator.rows
    if rows.sharded:
        require_shareable(solver, observations)
        observations = observations.part(rows.start(), operator.num_own_rows)
    problem = Problem(rows.local(mean), operator, LaplaceSite(observations))
    variational = approximation == "variational" and not observations.likelihood.quadratic
    # A variational site needs a covariance, and passes for one step and one covariance in each stage.
    too_few = solver.max_passes is not None and solver.max_passes < 2 * _PASSES_OF_A_STAGE
    variational = variational and solver.gives_covariance and not too_few
    with torch.no_grad(), rows.collective_section() as interrupt:
        kept = TraceData() if trace is None else trace
        run = _Run(solver, operator, Listeners(*listeners), kept, on_posterior, checkpoint, interrupt)
        run.trace.settings = run_settings(problem, operator, solver, approximation)
        run.refines = variational and rounds.can_refine(solver)
        solution = run.stage(problem, warm_start, final=not variational) if run.first == 0 else None
        marginals = run.covariance
        if solution is not None and marginals is None:
            marginals = run.damping.first(
                problem, solution.latent_values, solution.curvature, solution.latent_covariance
            )
        last = rounds.max_rounds(problem) if variational and not run.refines else 1
        for index in range(max(1, run.first), last + 1 if variational else 1):
            if solution is not None and (solution.status.reason is Reason.INTERRUPTED or run.late()):
                break
            assert marginals is not None
            run.index, run.round, run.covariance = index, index - 1, marginals
            site = VariationalSite.from_covariance(observations, marginals)
            try:
                solution = run.stage(problem.with_site(site), solution, final=True)
            except KeyboardInterrupt:  # before this stage had a posterior of its own
                if solution is None:
                    raise
                solution = replace(solution, status=Status(Reason.INTERRUPTED))
            if run.refines or solution.status.reason is Reason.INTERRUPTED:
                break
            solution, marginals, done = _next_round(run, problem, solution, marginals)
            if done:
                break
    assert solution is not None
    return replace(solution, approximation=approximation) if observations.likelihood.quadratic else solution


def _next_round(run: _Run, problem: Problem, solution: Solution, marginals: Tensor) -> tuple[Solution, Tensor, bool]:
    """For a solver that takes its rounds as stages: a solution with its residual, the next site's marginals, whether to stop.

    Args:
        run: The run.
        problem: With any site of the observations.
        solution: That the last stage came to.
        marginals: That its site was made from.
    """
    solver, limit = run.solver, run.limit
    residual = rounds.widened(problem, marginals, solution.latent_covariance)
    stationary = residual <= rounds.residual_tolerance(problem, solver.tolerance)
    exhausted = run.index == rounds.max_rounds(problem) or run.late() or (limit is not None and run.passes >= limit)
    # A mean that its own site could not be solved for is not worth another site.
    exhausted = exhausted or not (solution.status.converged or solution.status.reason is Reason.PRECISION)
    status = solution.status
    if exhausted and not stationary and status.converged:
        status = Status(Reason.ROUNDS, f"residual {residual:.2g} posterior deviations")
        ended = run.trace.stages.pop()
        run.trace.stages.append(replace(ended, reason=status.reason.name, status=str(status)))
    solution = replace(solution, status=status, variational_residual=residual)
    following = run.damping.following(problem, solution.latent_values, solution.latent_covariance, marginals, residual)
    return solution, following, stationary or exhausted


def _renewed(problem: Problem, solver: Solver[Any], posterior: Posterior, status: Status) -> Status:
    """The status once the covariance's pass has renewed the certificate of a space that could not grow."""
    per_row = 0.5 * posterior.norm_squared / problem.num_rows
    exhausted = status.reason in (Reason.PRECISION, Reason.POLICY)
    if exhausted and problem.site.log_concave and per_row <= solver.tolerance:
        return Status(Reason.CONVERGED, f"gap {per_row:.2g} nats per row, tolerance {solver.tolerance:.2g}")
    return status


def _ended(solver: Solver[Any], settled: rounds.Settled) -> Status:
    """Why rounds ended: converged only where the mean is certified and the posterior stationary."""
    if settled.status is not None:
        return settled.status
    if not settled.stationary:
        return Status(Reason.ROUNDS, f"residual {settled.residual:.2g} posterior deviations")
    problem = settled.problem
    per_row = 0.5 * settled.posterior.norm_squared / problem.num_rows
    detail = f"gap {per_row:.2g} nats per row, tolerance {solver.tolerance:.2g}"
    if per_row == float("inf"):
        return solver.status(problem, settled.state, 0) or Status(Reason.SETTLED)
    return Status(Reason.CONVERGED if problem.site.log_concave else Reason.STATIONARY, detail)


def solve_problem(
    problem: Problem, solver: Solver, *, warm_start: Solution | None = None, final: bool = True
) -> Solution:
    """Solves one problem, as one site sees it: a single stage of ``solve``.

    Args:
        problem: Prior and site.
        solver: The solver.
        warm_start: An earlier solution to start from.
        final: False to stop as loosely as a stage that another follows.
    """
    with torch.no_grad():
        run = _Run(solver, problem.operator)
        run.trace.settings = run_settings(problem, problem.operator, solver, problem.site.name)
        return run.stage(problem, warm_start, final=final)


@dataclass
class _Run:
    """One call of ``solve``: what is shared by its stages."""

    solver: Solver[Any]
    operator: KernelOperator
    listener: Listener = field(default_factory=Listener)
    trace: TraceData = field(default_factory=TraceData)
    on_posterior: Callable[[Solution], None] | None = None
    keeper: Keeper | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    started: float = field(default_factory=time.perf_counter)
    first: int = 0  # stage to begin with
    covariance: Tensor | None = None  # marginals that the site of a later stage was made from
    round: int = 0
    refines: bool = False  # whether the last stage ends with rounds of its own
    damping: rounds.Damping = field(default_factory=rounds.Damping)  # of rounds that are stages

    def __post_init__(self) -> None:
        self.limit = self.solver.max_passes
        self.counts = self.operator.counts.copy()
        self.index = 0
        self.recorded: Any = None  # the state of the last record
        self.earlier = None
        if self.keeper is not None:
            require_resumable(self.solver)
            self.earlier = self.keeper.earlier
        if self.earlier is not None:
            self._take_up(self.earlier)

    def _take_up(self, earlier: Packed) -> None:
        """Begins where an earlier run was, its passes, records and seconds included."""
        values = earlier.values
        self.first = self.index = values["stage"]
        self.covariance = earlier.arrays.get("covariance")
        self.counts = replace(
            self.counts,
            passes=self.counts.passes - values["kernel_passes"],
            entries=self.counts.entries - values["kernel_entries"],
            seconds=self.counts.seconds - values["kernel_seconds"],
        )
        self.started -= values["seconds"]
        self.damping = rounds.Damping(*values["damping"])
        self.trace.records = [
            TraceRecord(**(r | {"class_residuals": tuple(r["class_residuals"])})) for r in values["records"]
        ]
        self.trace.phase_seconds = dict(values["phase_seconds"])
        self.trace.stages = [StageRecord(**stage) for stage in values["stages"]]

    def keep(self, solver: Solver[Any], state: Any) -> None:
        """Hands the keeper all that another process needs to go on after this step."""
        assert self.keeper is not None
        values = {
            "stage": self.index,
            "kernel_passes": self.passes,
            "kernel_entries": self.operator.counts.entries - self.counts.entries,
            "kernel_seconds": self.operator.counts.seconds - self.counts.seconds,
            "seconds": self.seconds,
            "records": self.trace.to_dicts(),
            "stages": [asdict(stage) for stage in self.trace.stages],
            "phase_seconds": self.trace.phase_seconds,
            "damping": [self.damping.share, self.damping.last],
        }
        packed = Packed({} if self.covariance is None else {"covariance": self.covariance}, values)
        packed.add("state", solver.pack(state))  # type: ignore[attr-defined] # required above
        self.keeper.keep(packed)

    def _begin(self, solver: Solver[Any], problem: Problem, warm_start: Solution | None) -> Any:
        """The first state of a stage: a new one, or that of the earlier run, which is used once."""
        earlier, self.earlier = self.earlier, None
        if earlier is None:
            return solver.init(problem, warm_start)
        return solver.unpack(problem, earlier.part("state"))  # type: ignore[attr-defined] # required above

    @property
    def passes(self) -> int:
        """Kernel passes of this run."""
        return self.operator.counts.passes - self.counts.passes

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def stage(self, problem: Problem, warm_start: Solution | None, *, final: bool) -> Solution:
        """Runs one site to its end."""
        try:
            return self._stage(problem, warm_start, final=final)
        except torch.linalg.LinAlgError as error:  # at its start, or in its covariance
            raise self._not_factorised(problem, warm_start) from error

    def _stage(self, problem: Problem, warm_start: Solution | None, *, final: bool) -> Solution:
        self.listener.begin(problem.site.name, tolerance=self.solver.tolerance * problem.num_rows)
        problem = replace(problem, deadline=self._deadline(1.0 if final else _PRELIMINARY_TIME))
        solver = self.solver
        if not final:
            solver = solver.loosened(_PRELIMINARY_FACTOR)
        state, status = self._mode(solver, problem, warm_start, final=final)
        begun, in_kernel = time.perf_counter(), self.operator.counts.seconds
        affordable = self.limit is None or self.passes < self.limit
        try:
            posterior = solver.finish(problem, state, final=final) if affordable else self._salvage(problem, state)
        except KeyboardInterrupt:
            if self.index > 0 and warm_start is not None:  # the stage before has a covariance
                raise
            status = Status(Reason.INTERRUPTED, "in the covariance, which is the prior's")
            posterior = self._salvage(problem, state)
        self._check_covariance(problem, state, posterior)
        status = _renewed(problem, solver, posterior, status)
        residual = None
        if final and self.refines and affordable and status.reason is not Reason.INTERRUPTED:
            problem, posterior, status, residual = self._rounds(self.solver, problem, state, posterior)
        solution = replace(self._solution(problem, posterior, status), variational_residual=residual)
        if not final and self.refines and posterior.precision.rank > 0 and status.reason is not Reason.INTERRUPTED:
            try:
                self.covariance = self._near_marginals(problem, state, posterior)
            except KeyboardInterrupt:
                solution = replace(solution, status=Status(Reason.INTERRUPTED))
        self._spent("covariance", begun, in_kernel)
        self.listener.end(problem.site.name)
        solution = replace(solution, seconds=self.seconds)
        return solution if final else self._hand_out(solution)

    def _mode(
        self, solver: Solver[Any], problem: Problem, warm_start: Solution | None, *, final: bool
    ) -> tuple[Any, Status]:
        """Steps until the solver, a budget or the user ends it: the state, and why it ended."""
        begun, in_kernel = time.perf_counter(), self.operator.counts.seconds
        # Passes kept for this stage's covariance and the certificate after its rounds, and for the stage that follows.
        own = int(solver.gives_covariance) + int(final and self.refines)
        reserved = own if final else max(own + _PASSES_OF_A_STAGE, (self.limit or 0) // 2)
        resumed = self.earlier is not None
        state = self._begin(solver, problem, warm_start)
        self._check(problem, state, None, warm_start)
        # A state that was kept when it was interrupted may be the last one.
        status = solver.status(problem, state, self.passes + reserved) if resumed else None
        try:
            while status is None:
                previous, state = state, self._step(solver, problem, state)
                self._check(problem, state, previous, warm_start)
                self._record(problem, state)
                status = solver.status(problem, state, self.passes + reserved) or self._asked_to_stop(problem)
                if status is None:
                    status = self._between_steps(solver, problem, state)
                elif status.reason is Reason.INTERRUPTED and self.keeper is not None:  # where Ctrl-C is no exception
                    self.keep(solver, state)
        except KeyboardInterrupt:
            status = Status(Reason.INTERRUPTED)
            # What grows in place may have been in the middle of a step: the file then keeps an earlier state.
            whole = state is self.recorded and state.rank == self.trace[len(self.trace) - 1].rank
            if self.keeper is not None and whole:
                self.keep(solver, state)
        self._spent("mode", begun, in_kernel)
        return state, status

    def _near_marginals(self, problem: Problem, state: Any, posterior: Posterior) -> Tensor:
        """Marginals near to the last ones, from a covariance that is cheap: the last stage then needs few rounds."""
        residual, ended = _PRELIMINARY_RESIDUAL, lambda: self._asked_to_stop(problem)
        return rounds.settle(
            self.solver, problem, state, posterior, residual, self._refine, ended
        ).posterior.latent_covariance

    def _check_covariance(self, problem: Problem, state: Any, posterior: Posterior) -> None:
        if problem.rows.all_reduce_any(not is_finite(posterior.latent_covariance, posterior.precision.factor)):
            raise SolverError(
                "The posterior covariance must be finite. Got NaN or infinity. Check that the kernel is positive definite, "
                "or use float64; the error's `solution` has the posterior mean with the prior's covariance.",
                self._solution(problem, self._salvage(problem, state), Status(Reason.FAILED, "in the covariance")),
            )

    def _rounds(
        self, solver: Any, problem: Problem, state: Any, posterior: Posterior
    ) -> tuple[Problem, Posterior, Status, float]:
        """Rounds until the posterior is stationary and its mean certified."""

        def ended() -> Status | None:
            return self._asked_to_stop(problem)

        def advance(problem: Problem, state: Any, certify: bool) -> tuple[Any, Status | None]:
            if self.limit is not None and self.passes >= self.limit:
                return state, Status(Reason.PASSES, f"{self.passes} passes, before the mean was certified")
            self.round += 1
            if certify:
                after = solver.certify(problem, state)
                self._record(problem, after)
                return after, self._asked_to_stop(problem)
            after = self._step(solver, problem, state)
            self._check(problem, after, state, None)
            self._record(problem, after)
            reached = solver.status(problem, after, self.passes) or self._asked_to_stop(problem)
            return after, None if reached is not None and reached.converged else reached

        try:
            wanted = rounds.residual_tolerance(problem, solver.tolerance)
            settled = rounds.settle(solver, problem, state, posterior, wanted, self._refine, ended, advance)
        except KeyboardInterrupt:  # the posterior of the frozen problem is whole
            return problem, posterior, Status(Reason.INTERRUPTED), float("inf")
        return settled.problem, settled.posterior, _ended(solver, settled), settled.residual

    def _hand_out(self, solution: Solution) -> Solution:
        if self.on_posterior is None:
            return solution
        try:
            self._tell(self.on_posterior, solution)
        except KeyboardInterrupt:
            self.interrupt.pressed = True
        pressed = self.operator.rows.all_reduce_any(self.interrupt.pressed)
        return replace(solution, status=Status(Reason.INTERRUPTED)) if pressed else solution

    def _between_steps(self, solver: Solver[Any], problem: Problem, state: Any) -> Status | None:
        """Keeps and hands out what there is; says whether that took up the time that was left."""
        if self.keeper is not None and self.keeper.due():
            self.keep(solver, state)
        if self.on_posterior is None:
            return None
        posterior, running = self._salvage(problem, state), Status(Reason.RUNNING)
        self._tell(self.on_posterior, self._as_solution(problem, posterior, running, evidence=False))
        return self._asked_to_stop(problem)

    def _tell(self, function: Callable[[Any], None], argument: Any) -> None:
        """Calls a function of the user's, who may stop the solve from it: with others at work, at the next common point."""
        try:
            function(argument)
        except KeyboardInterrupt:
            if not self.operator.rows.sharded:
                raise
            self.interrupt.pressed = True

    def _refine(self, problem: Problem, state: Any) -> Any:
        after = self._guarded(self.solver.refine, problem, state)  # type: ignore[attr-defined] # where rounds are taken
        self._check(problem, after, state, None)
        return after

    def _step(self, solver: Solver[Any], problem: Problem, state: Any) -> Any:
        return self._guarded(solver.step, problem, state)

    def _guarded(self, move: Callable[[Problem, Any], Any], problem: Problem, state: Any) -> Any:
        try:
            return move(problem, state)
        except torch.linalg.LinAlgError as error:
            status = Status(Reason.FAILED, "a matrix could not be factorised")
            last = self._solution(problem, self._salvage(problem, state), status)
            raise self._not_factorised(problem, last) from error

    def _not_factorised(self, problem: Problem, last: Solution | None) -> SolverError:
        """The error for a matrix that is indefinite or not finite, with the last good posterior."""
        return SolverError(
            f"A matrix of the {problem.site.name} step must be positive definite and finite. Got one that is not "
            f"after {self.passes} kernel passes. Check that the kernel is positive definite, its hyperparameters "
            "and the scale of inputs and targets, or use float64; the error's `solution` is the last good posterior.",
            last,
        )

    def _asked_to_stop(self, problem: Problem) -> Status | None:
        """By Ctrl-C, or by the clock of any process: all stop together."""
        if self.operator.rows.all_reduce_any(self.interrupt.pressed):
            return Status(Reason.INTERRUPTED)
        return Status(Reason.TIME, f"{self.seconds:.1f} s") if self._past(problem.deadline) else None

    def late(self) -> bool:
        """Whether the time limit has passed, in any process."""
        return self._past(self._deadline(1.0))

    def _deadline(self, share: float) -> float:
        limit = self.solver.time_limit
        return float("inf") if limit is None else self.started + share * limit

    def _past(self, deadline: float) -> bool:
        return deadline < float("inf") and self.operator.rows.all_reduce_any(time.perf_counter() >= deadline)

    def _spent(self, phase: str, begun: float, in_kernel: float) -> None:
        kernel = self.operator.counts.seconds - in_kernel
        self.trace.add_seconds("kernel", kernel)
        self.trace.add_seconds(phase, time.perf_counter() - begun - kernel)

    def _record(self, problem: Problem, state: Any) -> None:
        kernel = self.operator.counts.seconds - self.counts.seconds
        record = step_record(problem, state, kernel_passes=self.passes, seconds=self.seconds, kernel_seconds=kernel)
        record = replace(record, round=self.round)
        self.trace.add(record)
        self.recorded = state
        self._tell(self.listener, record)

    def _check(self, problem: Problem, state: Any, previous: Any, warm_start: Solution | None) -> None:
        if not problem.rows.all_reduce_any(not state.finite):
            return
        last = warm_start
        if previous is not None:
            status = Status(Reason.FAILED, "a NaN or infinity appeared")
            last = self._solution(problem, self._salvage(problem, previous), status)
        raise SolverError(
            f"The {problem.site.name} objective or one of its derivatives became NaN or infinite after {self.passes} kernel "
            "passes. They must stay finite. Check the kernel's hyperparameters and the scale of inputs and targets, or use "
            "float64; the error's `solution` is the last good posterior.",
            last,
        )

    def _salvage(self, problem: Problem, state: Any) -> Posterior:
        # The covariance is what costs passes, and what a bad curvature would spoil.
        return self.solver.without_covariance().finish(problem, state, final=True)

    def _solution(self, problem: Problem, posterior: Posterior, status: Status) -> Solution:
        """The solution at the end of a stage, which the trace notes."""
        ended = stage_record(problem, posterior, status, kernel_passes=self.passes, seconds=self.seconds)
        self.trace.add_stage(ended, spectrum_source(posterior))
        return self._as_solution(problem, posterior, status)

    def _as_solution(
        self, problem: Problem, posterior: Posterior, status: Status, *, evidence: bool = True
    ) -> Solution:
        certificate = Certificate(posterior.norm_squared) if problem.site.log_concave else None
        laplace = evidence and isinstance(problem.site, LaplaceSite)
        return Solution(
            representer_weights=posterior.representer_weights,
            latent_values=posterior.latent_values,
            latent_covariance=posterior.latent_covariance,
            precision=posterior.precision,
            objective=posterior.objective,
            approximation=problem.site.name,
            status=status,
            certificate=certificate,
            kernel_passes=self.passes,
            kernel_entries=int(problem.rows.all_reduce_sum(self.operator.counts.entries - self.counts.entries)),
            seconds=self.seconds,
            trace=self.trace,
            log_marginal_likelihood=posterior.log_marginal_likelihood() if laplace else None,
            elbo=posterior.elbo(problem) if evidence else math.nan,
            space=posterior.space,
            coordinates=posterior.coordinates,
            operator=self.operator,
            curvature=posterior.curvature,
            actions=posterior.actions,
            support=posterior.support,
            local=posterior.local,
            rows=problem.rows,
        )

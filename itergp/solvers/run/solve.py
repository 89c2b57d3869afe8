"""``solve``: the stages of a solve, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import LaplaceSite, Observations, VariationalSite
from itergp.operators import KernelOperator
from itergp.parallel import Interrupt
from itergp.persistence import Checkpointer
from itergp.posterior.natural_gradients import DENSE_SHARE, DENSE_VALUES, DenseProblem
from itergp.posterior.posterior import Posterior, prior_covariance
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Solution
from itergp.posterior.status import Reason, Status
from itergp.records import Listeners, TraceData, TraceRecord
from itergp.solvers.protocol import Solver, require_shareable
from itergp.solvers.run import rounds
from itergp.solvers.run.budget import Budget
from itergp.solvers.run.callbacks import Callbacks
from itergp.solvers.run.loop import PASSES_OF_A_STAGE, Run, Stage
from itergp.solvers.run.recording import Recorder, run_settings
from itergp.solvers.run.resuming import Resumer

APPROXIMATIONS = ("variational", "laplace")


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
    checkpoint: Checkpointer | None = None,
    time_limit: float | None = None,
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
            under the current marginals, until these are the marginals that are returned. Where densities are unbounded, and a
            mode may not exist, or have kinks, on which it sits, the first expectations are under the marginals that dense
            matrices find for few latent values, otherwise under the prior's, as far as these are in reach. A budget
            of fewer than four kernel passes, or a solver that gives no covariance, cannot do that: the result is then the
            Laplace posterior, and says so.
        warm_start: An earlier solution, whose weights are reused, and what its warm start holds for the solver.
        listeners: Functions that are called with every record of the trace, or an ``itergp.records.Listener`` each.
        trace: Where records are kept: an empty one, such as ``itergp.diagnostics.Trace()``; default a plain ``TraceData()``.
        on_posterior: Called with the posterior so far after every step that another follows, its covariance the prior's and its
            ELBO not computed (NaN), and with that of every stage that another follows.
        checkpoint: Where to keep the state between steps, and what to begin from if it holds an earlier one.
        time_limit: Seconds, where they are fewer than the solver's own.

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
    variational = approximation == "variational" and _can_be_variational(observations, solver)
    with torch.no_grad(), rows.collective_section() as interrupt:
        callbacks = Callbacks(Listeners(*listeners), on_posterior, interrupt, rows)
        records = TraceData() if trace is None else trace
        run = _begin(problem, solver, callbacks, records, checkpoint, approximation, time_limit)
        run = replace(run, refines=variational and solver.rounds is not None)
        solution = None
        if run.position.stage == 0:
            by_mode = observations.likelihood.has_smooth_mode
            solution = None if by_mode or not variational else _by_dense_matrices(run, problem)
            if solution is None:
                first = problem if by_mode or not variational else _without_mode(run, problem)
                solution = Stage(run, first, warm_start, final=not variational).run()
        if variational:
            solution = _variational_stages(run, problem, solution)
    assert solution is not None
    solution = _within_products(run, problem, solution)
    return solution.with_report(approximation=approximation) if observations.likelihood.quadratic else solution


def _can_be_variational(observations: Observations, solver: Solver) -> bool:
    """A variational site needs a covariance, and passes for one step and one covariance in each stage."""
    too_few = solver.max_passes is not None and solver.max_passes < 2 * PASSES_OF_A_STAGE
    return not observations.likelihood.quadratic and solver.gives_covariance and not too_few


def _by_dense_matrices(run: Run, problem: Problem) -> Solution | None:
    """Where rounds of few values would begin, whose mean and marginals they then certify; None if it is not found.

    As it is, with the prior's covariance, it is what Ctrl-C or the clock leave.
    """
    observations, solver, mean = problem.site.observations, run.solver, problem.mean
    few = mean.numel() <= min(DENSE_VALUES, solver.exact_values) and not problem.rows.sharded
    if not few or solver.max_passes is not None or not observations.likelihood.raises_bound:
        return None
    weights, values, status = torch.zeros_like(mean), mean, Status(Reason.INTERRUPTED)
    try:
        dense = DenseProblem.of(problem.operator, mean, observations)
        found = dense.variational_posterior(None, tolerance=DENSE_SHARE * solver.tolerance, ended=run.late)
        if found is None:
            return None
        run.position.marginals = found.marginals.to(mean)
        weights, values = found.weights.to(mean), mean + found.centred.to(mean)
        status = Status(Reason.TIME, f"{run.budget.seconds():.1f} s, before the variational stage")
    except torch.linalg.LinAlgError:
        return None
    except KeyboardInterrupt:
        pass  # with the prior's mean
    prior = prior_covariance(problem)
    posterior = Posterior(weights, values, prior.latent_covariance, prior.precision, problem.objective(values, weights))
    return run.recorder.solution(problem, posterior, status, evidence=False)


def _without_mode(run: Run, problem: Problem) -> Problem:
    """The problem with a first site whose mean exists and is smooth: for the prior's marginals, as far as in reach."""
    variance = problem.prior_marginals()
    marginals = variance if variance.dim() == 3 else torch.diag_embed(variance)
    reached = run.position.damping.first(problem, problem.mean, None, marginals)
    return problem.with_site(VariationalSite.from_covariance(problem.site.observations, reached))


def _begin(
    problem: Problem,
    solver: Solver,
    callbacks: Callbacks,
    trace: TraceData,
    checkpoint: Checkpointer | None,
    approximation: str,
    time_limit: float | None = None,
) -> Run:
    """A run, which goes on from its checkpoint if that holds an earlier one."""
    resumer = Resumer(checkpoint, solver)
    seconds = min((limit for limit in (time_limit, solver.time_limit) if limit is not None), default=None)
    budget = resumer.budget(Budget.of(problem.operator, solver.max_passes, seconds))
    resumer.restore(trace)
    trace.settings = run_settings(problem, problem.operator, solver, approximation)
    return Run(solver, budget, Recorder(trace, budget), callbacks, resumer, resumer.position())


def _variational_stages(run: Run, problem: Problem, solution: Solution | None) -> Solution | None:
    """The stages after the Laplace mode: one, or rounds of them for a solver that takes no rounds itself.

    Args:
        run: The run.
        problem: With the Laplace site.
        solution: The Laplace posterior, or None if an earlier run had it.
    """
    observations, position = problem.site.observations, run.position
    marginals = position.marginals
    if solution is not None and marginals is None:
        marginals = position.damping.first(
            problem, solution.latent_values, solution.curvature, solution.latent_covariance
        )
    for index in range(max(1, position.stage), (1 if run.refines else rounds.MAX_ROUNDS) + 1):
        if solution is not None and (solution.status.reason is Reason.INTERRUPTED or run.late()):
            solution = _unsettled(run, solution, solution.variational_residual)
            break
        assert marginals is not None
        position.stage, position.round, position.marginals = index, index - 1, marginals
        site = position.damping.site(observations, marginals)
        try:
            solution = Stage(run, problem.with_site(site), solution, final=True).run()
        except KeyboardInterrupt:  # before this stage had a posterior of its own
            if solution is None:
                raise
            solution = solution.with_report(status=Status(Reason.INTERRUPTED))
        if run.refines or solution.status.reason is Reason.INTERRUPTED:
            break
        solution, marginals, done = _next_round(run, problem, solution, marginals)
        if done:
            break
    return solution


def _next_round(run: Run, problem: Problem, solution: Solution, marginals: Tensor) -> tuple[Solution, Tensor, bool]:
    """For a solver that takes its rounds as stages: a solution with its residual, the next site's marginals, whether to stop.

    Args:
        run: The run.
        problem: With any site of the observations.
        solution: That the last stage came to.
        marginals: That its site was made from.
    """
    damping, mean, covariance = run.position.damping, solution.latent_values, solution.latent_covariance
    residual = max(rounds.widened(problem, marginals, covariance), rounds.drift(problem, mean, marginals, covariance))
    following = damping.following(problem, mean, covariance, marginals, residual, solution.curvature)
    residual = residual / damping.least  # what a round would change that goes all the way
    stationary = residual <= rounds.residual_tolerance(problem, run.solver.tolerance)
    exhausted = run.position.stage == rounds.MAX_ROUNDS or run.late() or run.budget.passes_left() <= 0
    # A mean that its own site could not be solved for is not worth another site; one that needs more steps takes them there.
    solved = solution.status.converged or solution.status.reason in (Reason.PRECISION, Reason.STEPS)
    exhausted = exhausted or not solved
    if exhausted and not stationary:
        solution = _unsettled(run, solution, residual)
    solution = solution.with_report(variational_residual=residual)
    return solution, following, stationary or exhausted


def _within_products(run: Run, problem: Problem, solution: Solution) -> Solution:
    """A solution, which is not converged where the certificate knows of errors of products beyond the tolerance."""
    if not solution.status.converged or solution.certificate is None or problem.operator.product_error is None:
        return solution
    gap = solution.certificate.objective_gap / problem.num_rows
    if gap <= run.solver.tolerance:
        return solution
    detail = f"gap {gap:.2g} nats per row, for the errors of the operator's products; operator='blocked' has none"
    return _with_last_status(run, solution, Status(Reason.PRECISION, detail))


def _unsettled(run: Run, solution: Solution, residual: float | None) -> Solution:
    """A solution whose mean converged, with a status that says that its marginals did not, or were not even begun."""
    if not solution.status.converged:
        return solution
    if residual is None:
        status = Status(Reason.TIME, f"{run.budget.seconds():.1f} s, before the variational stage")
    else:
        status = Status(Reason.ROUNDS, f"residual {residual:.2g} posterior deviations")
    return _with_last_status(run, solution, status)


def _with_last_status(run: Run, solution: Solution, status: Status) -> Solution:
    stages = run.recorder.trace.stages
    stages[-1] = replace(stages[-1], reason=status.reason.name, status=str(status))
    return solution.with_report(status=status)


def solve_problem(
    problem: Problem,
    solver: Solver,
    *,
    warm_start: Solution | None = None,
    final: bool = True,
    time_limit: float | None = None,
) -> Solution:
    """Solves one problem, as one site sees it: a single stage of ``solve``.

    Args:
        problem: Prior and site.
        solver: The solver.
        warm_start: An earlier solution to start from.
        final: False to stop as loosely as a stage that another follows.
        time_limit: Seconds, where they are fewer than the solver's own.
    """
    with torch.no_grad():
        callbacks = Callbacks(interrupt=Interrupt(), rows=problem.rows)
        run = _begin(problem, solver, callbacks, TraceData(), None, problem.site.name, time_limit)
        return Stage(run, problem, warm_start, final=final).run()

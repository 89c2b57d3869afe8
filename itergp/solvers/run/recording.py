"""What a run writes into its trace: sums over the rows of what is there anyway, and no kernel product."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from itergp.operators import AbstractOperator
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.solution import Certificate, Report, Solution
from itergp.posterior.status import Status
from itergp.posterior.warm_start import WarmStart
from itergp.records import RunSettings, StageRecord, TraceData, TraceRecord
from itergp.solvers.protocol import Solver, State
from itergp.solvers.run.budget import Budget

if sys.platform != "win32":
    import resource

_SPECTRUM_LIMIT = 2048  # directions beyond which the spectrum costs more than it tells


@dataclass(frozen=True)
class Recorder:
    """Writes what happens into a trace, and makes solutions that say what it took.

    Attributes:
        trace: Where to.
        budget: What has been used.
    """

    trace: TraceData
    budget: Budget

    def step(self, problem: Problem, state: State, number: int) -> TraceRecord:
        """Records a step, which belongs to a round of that number."""
        record = step_record(
            problem,
            state,
            kernel_passes=self.budget.passes,
            seconds=self.budget.seconds(),
            kernel_seconds=self.budget.kernel_seconds,
        )
        record = replace(record, round=number)
        self.trace.add(record)
        return record

    def is_last(self, state: State) -> bool:
        """Whether a state is of the size that the last record says."""
        return len(self.trace) > 0 and state.rank == self.trace[len(self.trace) - 1].rank

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase, those within kernel products apart."""
        begun, in_kernel = time.perf_counter(), self.budget.kernel_seconds
        yield
        kernel = self.budget.kernel_seconds - in_kernel
        self.trace.add_seconds("kernel", kernel)
        self.trace.add_seconds(name, time.perf_counter() - begun - kernel)

    def end_of_stage(self, problem: Problem, posterior: Posterior, status: Status) -> Solution:
        """The solution at the end of a stage, which the trace notes."""
        used = self.budget
        ended = stage_record(problem, posterior, status, kernel_passes=used.passes, seconds=used.seconds())
        self.trace.add_stage(ended, spectrum_source(posterior))
        return self.solution(problem, posterior, status)

    def solution(self, problem: Problem, posterior: Posterior, status: Status, *, evidence: bool = True) -> Solution:
        """A posterior, how it was found, and how far it is from the exact one.

        Args:
            problem: The problem.
            posterior: At its end, or on the way.
            status: Why it ended, or that it has not.
            evidence: Whether evidence and ELBO are computed.
        """
        certificate = Certificate(_certified(problem, posterior)) if problem.site.log_concave else None
        laplace = evidence and not problem.site.averages
        report = Report(
            approximation=problem.site.name,
            status=status,
            certificate=certificate,
            kernel_passes=self.budget.passes,
            kernel_entries=int(problem.rows.all_reduce_sum(self.budget.entries)),
            seconds=self.budget.seconds(),
            trace=self.trace,
            log_marginal_likelihood=_evidence(problem, posterior) if laplace else None,
            elbo=posterior.elbo(problem) if evidence else math.nan,
        )
        start = replace(posterior.warm_start or WarmStart(), operator=problem.operator)
        return Solution(posterior.kept(problem.rows), report, start)


def _certified(problem: Problem, posterior: Posterior) -> float:
    """The bound q of a posterior, for the kernel's products themselves."""
    weights, curvature = posterior.representer_weights, posterior.curvature
    if curvature is None:
        curvature = problem.site.derivatives(posterior.latent_values)[1]
    return problem.distance_of_products(posterior.norm_squared, weights, curvature)


def _evidence(problem: Problem, posterior: Posterior) -> float:
    """Laplace's estimate; its log-determinant of all rows where the operator knows about that, or within the actions."""
    if posterior.curvature is not None and posterior.precision.rank < problem.num_rows * problem.num_latents:
        found = problem.operator.log_determinant(posterior.curvature)
        if found is not None and math.isfinite(found):
            return -posterior.objective - 0.5 * found
    return posterior.log_marginal_likelihood()


def step_record(
    problem: Problem, state: State, *, kernel_passes: int, seconds: float, kernel_seconds: float
) -> TraceRecord:
    """The record of a step, from the solver's state after it."""
    residual = state.gradient_residual
    norms: tuple[float, ...] = ()
    if residual is not None:
        norms = tuple(problem.rows.all_reduce_sum(residual.square().sum(0, dtype=torch.float64)).sqrt().tolist())
    known = problem.site.log_concave and state.norm_squared < math.inf
    return TraceRecord(
        stage=problem.site.name,
        kernel_passes=kernel_passes,
        seconds=seconds,
        objective=state.objective,
        objective_gap=0.5 * state.norm_squared if known else None,
        residual=state.residual,
        rank=state.rank,
        newton_steps=state.newton_steps,
        step_length=state.step_length,
        event=state.event,
        class_residuals=norms,
        kernel_seconds=kernel_seconds,
        memory=peak_memory(problem.operator.device),
    )


def stage_record(
    problem: Problem, posterior: Posterior, status: Status, *, kernel_passes: int, seconds: float
) -> StageRecord:
    """The record of a stage's end."""
    centred = posterior.latent_values - problem.mean
    variances = problem.prior_variance(), posterior.latent_covariance.diagonal(dim1=-2, dim2=-1), centred.square()
    sums = torch.stack([value.sum(dtype=torch.float64) for value in variances])
    prior, left, squares = problem.rows.all_reduce_sum(sums).tolist()
    weight = problem.rows.all_reduce_sum(problem.site.observations.total_weight)
    values = problem.num_rows * problem.num_latents
    # Psi = -log p + 1/2 <V, f - m>, so the likelihood need not be evaluated again.
    log_density = 0.5 * problem.inner(posterior.representer_weights, centred) - posterior.objective
    known = problem.site.log_concave and posterior.norm_squared < math.inf
    return StageRecord(
        stage=problem.site.name,
        reason=status.reason.name,
        status=str(status),
        kernel_passes=kernel_passes,
        seconds=seconds,
        objective=posterior.objective,
        objective_gap=0.5 * posterior.norm_squared if known else None,
        resolution=problem.resolution(posterior.latent_values, posterior.representer_weights, posterior.objective),
        covariance_rank=posterior.precision.rank,
        variance_explained=max(1.0 - left / prior, 0.0) if prior > 0.0 else math.nan,  # NaN stays
        log_density=log_density / weight if weight > 0.0 else math.nan,
        prior_deviation=math.sqrt(max(prior, 0.0) / values),
        latent_deviation=math.sqrt(squares / values),
        latent_extreme=float(problem.rows.all_reduce_max(centred.abs().amax())),
    )


def spectrum_source(posterior: Posterior) -> Tensor | None:
    """``A^T K A`` of a posterior, if its eigenvalues are cheap enough to be asked for."""
    gram = posterior.precision.gram
    return gram if 0 < gram.shape[0] <= _SPECTRUM_LIMIT else None


def run_settings(problem: Problem, operator: AbstractOperator, solver: Solver[Any], approximation: str) -> RunSettings:
    """What is solved, and within which limits."""
    return RunSettings(
        solver=type(solver).__name__,
        operator=type(operator).__name__,
        likelihood=type(problem.likelihood).__name__,
        approximation=approximation,
        labels=problem.likelihood.observes in ("label", "level"),
        log_concave=problem.site.log_concave,
        num_rows=problem.num_rows,
        num_latents=problem.num_latents,
        num_kernels=operator.num_kernels,
        dtype=str(problem.mean.dtype).removeprefix("torch."),
        device=problem.mean.device.type,
        tolerance=solver.tolerance,
        max_passes=solver.max_passes,
        max_rank=solver.max_rank,
        time_limit=solver.time_limit,
    )


def peak_memory(device: torch.device) -> int:
    """Most bytes that the process has held so far: resident memory, or that allocated on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

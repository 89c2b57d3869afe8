"""What a run writes into its trace: sums over the rows of what is there anyway, and no kernel product."""

from __future__ import annotations

import math
import sys
from typing import Any

import psutil
import torch
from torch import Tensor

from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, OrdinalLikelihood
from itergp.operators import KernelOperator
from itergp.posterior.posterior import Posterior
from itergp.posterior.problem import Problem
from itergp.posterior.status import Status
from itergp.records import RunSettings, StageRecord, TraceRecord
from itergp.solvers.protocol import Solver

if sys.platform != "win32":
    import resource

_SPECTRUM_LIMIT = 2048  # directions beyond which the spectrum costs more than it tells
_LABELS = (BernoulliLikelihood, CategoricalLikelihood, OrdinalLikelihood)


def step_record(
    problem: Problem, state: Any, *, kernel_passes: int, seconds: float, kernel_seconds: float
) -> TraceRecord:
    """The record of a step, from the solver's state after it."""
    residual = getattr(state, "gradient_residual", None)  # a solver need not say
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
        variance_explained=1.0 - left / prior if prior > 0.0 else math.nan,
        log_density=log_density / weight if weight > 0.0 else math.nan,
        prior_deviation=math.sqrt(max(prior, 0.0) / values),
        latent_deviation=math.sqrt(squares / values),
        latent_extreme=float(problem.rows.all_reduce_max(centred.abs().amax())),
    )


def spectrum_source(posterior: Posterior) -> Tensor | None:
    """``A^T K A`` of a posterior, if its eigenvalues are cheap enough to be asked for."""
    gram = posterior.precision.gram
    return gram if 0 < gram.shape[0] <= _SPECTRUM_LIMIT else None


def run_settings(problem: Problem, operator: KernelOperator, solver: Solver[Any], approximation: str) -> RunSettings:
    """What is solved, and within which limits."""
    return RunSettings(
        solver=type(solver).__name__,
        operator=type(operator).__name__,
        likelihood=type(problem.likelihood).__name__,
        approximation=approximation,
        labels=isinstance(problem.likelihood, _LABELS),
        log_concave=problem.site.log_concave,
        num_rows=problem.num_rows,
        num_latents=problem.num_latents,
        num_kernels=operator.num_kernels,
        dtype=str(problem.mean.dtype).removeprefix("torch."),
        device=problem.mean.device.type,
        tolerance=solver.tolerance,
        max_passes=solver.max_passes,
        max_rank=getattr(solver, "max_rank", None),
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

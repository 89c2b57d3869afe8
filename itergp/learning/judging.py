"""How well hyperparameters predict rows that they were not conditioned on."""

from __future__ import annotations

import torch
from torch import Tensor

from itergp.errors import SolverError
from itergp.likelihoods import Likelihood, Observations
from itergp.models import GP, LatentPosterior
from itergp.objectives import Deadline
from itergp.operators import make_operator
from itergp.solvers import Reason, solve
from itergp.solvers.few_values import solver_of_mode

DENSE_TOLERANCE = 1e-6  # nats per row, where values are few


def plugs_in(likelihood: Likelihood) -> bool:
    """Whether hyperparameters are learned for, and judged by, the density at the mode.

    A noise or dispersion to learn would stand in for the latent variance that plugging in leaves out; where densities have no
    bound, a mode is what meets its targets; and with Gaussian noise the exact posterior costs hardly more.
    """
    learned = any(parameter.requires_grad for parameter in likelihood.parameters())
    return likelihood.bounded_density and not likelihood.quadratic and not learned


def approximation_of(likelihood: Likelihood) -> str:
    """By which a posterior is found in the least time: the Laplace approximation wherever modes are smooth and bounded."""
    return "laplace" if likelihood.has_smooth_mode else "variational"


@torch.no_grad()
def held_out_densities(
    model: GP, data: GP, train: Tensor, held_out: Tensor, deadline: Deadline
) -> tuple[Tensor | None, bool]:
    """Log-densities of held-out rows, given others; and whether Ctrl-C ended the search for their posterior.

    At the mode, or integrated over the posterior: see ``plugs_in``.

    Args:
        model: Whose kernel, mean, likelihood and transform of the inputs predict.
        data: Whose rows these are.
        train: Numbers of the rows to condition on.
        held_out: Numbers of the rows to predict.
        deadline: When to give up.

    Returns:
        ``(M,)``, float64, negative infinity where no posterior is found; None if time is up before it is.
    """
    try:
        latent, interrupted = _posterior(model, data, train, held_out, deadline)
    except SolverError:
        return torch.full((len(held_out),), -torch.inf, dtype=torch.float64), False
    if latent is None:
        return None, interrupted
    unseen = _observations(model, data, held_out)
    if plugs_in(model.calculus):
        return unseen.log_density(latent.mean).double(), interrupted
    return unseen.predictive_log_density(latent.mean, latent.row_covariance()).double(), interrupted


@torch.no_grad()
def held_out_residuals(
    model: GP, data: GP, train: Tensor, held_out: Tensor, deadline: Deadline
) -> tuple[Tensor | None, bool]:
    """Squared residuals of held-out rows over their predictive variances ``(M,)``; see ``held_out_densities``.

    None also where they are not twice as large as the latent variance: they are then those of the function, not of a noise.
    A mode that is plugged in has no latent variance.
    """
    try:
        latent, interrupted = _posterior(model, data, train, held_out, deadline)
    except SolverError:
        return None, False
    if latent is None:
        return None, interrupted
    unseen = _observations(model, data, held_out)
    covariance = latent.mean.new_zeros(()) if plugs_in(model.calculus) else latent.row_covariance()
    covariance = covariance.expand(*latent.mean.shape, latent.mean.shape[-1])
    predictive = unseen.likelihood.predictive(latent.mean, covariance)
    squared = (unseen.targets - predictive.mean).square()
    if float(squared.mean()) < 2.0 * float(covariance[:, 0, 0].mean()):
        return None, interrupted
    return squared / predictive.variance, interrupted


def _posterior(
    model: GP, data: GP, train: Tensor, held_out: Tensor, deadline: Deadline
) -> tuple[LatentPosterior | None, bool]:
    """The latent posterior at held-out rows, with a covariance unless the mode is plugged in, or None; and of Ctrl-C.

    Raises:
        SolverError: If none is found.
    """
    if deadline.over:
        return None, False
    inputs, likelihood = data.train_inputs[0], model.calculus
    prior, validation = model.prior_at((inputs[train],)), model.prior_at((inputs[held_out],))
    operator = make_operator(
        prior.kernel, prior.features, num_kernels=prior.num_kernels, kind="auto", memory_budget=model.memory_budget
    )
    plugged = plugs_in(likelihood)
    approximation = "laplace" if plugged else approximation_of(likelihood)
    solver = model.solver
    if plugged:
        solver = solver_of_mode(solver, likelihood, operator, tolerance=DENSE_TOLERANCE)
    seen, left = _observations(model, data, train), deadline.left()
    solution = solve(operator, prior.mean, seen, solver, approximation=approximation, time_limit=left)
    interrupted = solution.status.reason is Reason.INTERRUPTED
    if solution.status.reason is Reason.TIME:
        return None, interrupted
    return LatentPosterior.at(validation, operator, solution, covariance=not plugged), interrupted


def _observations(model: GP, data: GP, rows: Tensor) -> Observations:
    """Rows of the data as the model's likelihood sees them."""
    targets, weight = model.calculus.validate_targets(data.train_targets[rows]), data.sample_weight
    return Observations(model.calculus, targets, None if weight is None else weight[rows])

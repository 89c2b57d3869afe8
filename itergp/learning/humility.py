"""Lengthscales that held-out rows cannot tell apart: the shorter ones know less far from the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, RQKernel
from torch import Tensor

from itergp.errors import SolverError
from itergp.kernels import AdditiveLaplacianKernel, LaplacianKernel, PairwiseLaplacianKernel
from itergp.learning.held_out import held_out_splits
from itergp.learning.judging import DENSE_TOLERANCE, approximation_of
from itergp.learning.lengthscale_prior import has_own_prior
from itergp.learning.predictives import humblest, marginals, standard_error
from itergp.models import LatentPosterior, NonConjugateGP
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.models.starting_values import rows_seen
from itergp.objectives import NEVER, Deadline, PredictiveLogDensity
from itergp.operators import make_operator
from itergp.solvers import solve
from itergp.solvers.few_values import solver_of_mode

# In deviations of a column. A function that hardly changes over the data would otherwise hardly change far beyond them either.
LIMITS = (4.0, 2.0)
_MOST_ROWS = 3000
_CLEARLY = 3.0  # standard errors


def limit_lengthscales(model: NonConjugateGP, *, seed: int = 0, deadline: Deadline = NEVER) -> float | None:
    """Shortens lengthscales to a few deviations of their column, as far as held-out rows do not object.

    That concerns RBF, Matern, rational quadratic and Laplacian kernels whose lengthscales are learned and have no prior of the
    user's. Compares the density of held-out rows at the mode, or, where modes sit on kinks or meet their targets, integrated
    over the variational posterior. Of the limits that are no worse than the best by more than a standard error, the shortest
    is kept.

    Args:
        model: The model.
        seed: Of the rows that are held out.
        deadline: When to give up, with lengthscales as they are.

    Returns:
        The limit in deviations, or None if the lengthscales stay.

    Raises:
        OutOfTimeError: If the deadline is past.
    """
    with torch.no_grad():
        prior = model.prior_at()
        features = prior.features if prior.features.dim() == 2 else prior.features[0]
        usable = _usable(prior.kernel, features)
        if not any(_exceeds(kernel, columns, LIMITS[0]) for kernel, columns in usable):
            return None
        if not PredictiveLogDensity.supports(model.observations.likelihood):
            return None
        try:
            free = _held_out_density(model, seed, deadline)
            densities = {("limit", 0.0): free}  # by the inverse of the limit
            for limit in LIMITS:
                with _limited(usable, limit):
                    density = _held_out_density(model, seed, deadline, free)
                if _is_clearly_behind(density, free):  # and shorter ones further
                    break
                densities["limit", 1.0 / limit] = density
        except SolverError:
            return None
        (_, inverse), _ = humblest(densities, {key: key[1] for key in densities}, most=math.inf)
        if inverse == 0.0:
            return None
        for kernel, columns in usable:
            kernel.lengthscale = _shortened(kernel, columns, 1.0 / inverse)
    return 1.0 / inverse


def _held_out_density(model: NonConjugateGP, seed: int, deadline: Deadline, rival: Tensor | None = None) -> Tensor:
    """Log-densities of held-out rows ``(M,)``, float64: of a quarter, or of few rows each quarter in turn.

    Of some quarters only where the rival's are clearly better.
    """
    observations = model.observations
    prior, found = model.prior_at(), list[Tensor]()
    approximation = approximation_of(observations.likelihood)
    for train, held_out in held_out_splits(observations, num_rows=_MOST_ROWS, seed=seed):
        if rival is not None and found and _is_clearly_behind(torch.cat(found), rival):
            break
        if approximation == "variational":
            mean, covariance, _ = marginals(model, prior, train, held_out, (approximation,), deadline)[approximation]
            found.append(observations.take(held_out).predictive_log_density(mean, covariance).double())
            continue
        distinct, validation = distinct_rows(model, prior, train), prior.take(held_out)
        part, seen = share_latents(distinct, prior.take(train), observations.take(train))
        operator = make_operator(
            prior.kernel, part.features, num_kernels=prior.num_kernels, kind="auto", memory_budget=model.memory_budget
        )
        solver, limit = model.solver.without_covariance(), deadline.left()
        solver = solver_of_mode(solver, seen.likelihood, operator, tolerance=DENSE_TOLERANCE)
        solution = solve(operator, part.mean, seen, solver, approximation="laplace", time_limit=limit)
        deadline.check()
        mean = LatentPosterior.at(validation, operator, solution, covariance=False).mean
        found.append(observations.take(held_out).log_density(mean).double())
    return torch.cat(found)


def _is_clearly_behind(density: Tensor, rival: Tensor) -> bool:
    """Whether the first of the rows that a rival predicts are predicted worse by several standard errors."""
    difference = rival[: len(density)] - density
    return float(difference.mean()) > _CLEARLY * standard_error(difference)


def _is_free(module: torch.nn.Module) -> TypeGuard[Kernel]:
    """Whether a module is a kernel with learned lengthscales in units of its inputs."""
    ours = (LaplacianKernel, AdditiveLaplacianKernel, PairwiseLaplacianKernel)
    if not isinstance(module, (MaternKernel, RBFKernel, RQKernel, *ours)):
        return False
    return bool(module.raw_lengthscale.requires_grad) and not has_own_prior(module)


def _usable(kernel: Kernel, features: Tensor) -> list[tuple[Kernel, Tensor]]:
    """Kernels with lengthscales that may be shortened, and deviations of the columns that these belong to."""
    seen, found = rows_seen(kernel, features), []
    for name, module in kernel.named_modules():
        if not _is_free(module) or name not in seen:
            continue
        own, width = seen[name].std(-2, correction=0), module.lengthscale.shape[-1]
        if width == 1:
            found.append((module, own.square().mean().sqrt().reshape(1)))
        elif own.shape == (width,):
            found.append((module, own))
    return found


def _shortened(kernel: Kernel, columns: Tensor, limit: float) -> Tensor:
    longest = limit * torch.where(columns > 0.0, columns, torch.inf).to(kernel.lengthscale)
    return torch.minimum(kernel.lengthscale, longest)


def _exceeds(kernel: Kernel, columns: Tensor, limit: float) -> bool:
    return bool((_shortened(kernel, columns, limit) < kernel.lengthscale).any())


@contextmanager
def _limited(usable: list[tuple[Kernel, Tensor]], limit: float) -> Iterator[None]:
    """Lengthscales within a limit for a while."""
    kept = [kernel.lengthscale.clone() for kernel, _ in usable]
    try:
        for kernel, columns in usable:
            kernel.lengthscale = _shortened(kernel, columns, limit)
        yield
    finally:
        for (kernel, _), value in zip(usable, kept, strict=True):
            kernel.lengthscale = value

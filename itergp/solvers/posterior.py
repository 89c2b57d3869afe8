"""``Posterior``: what a solver hands to the driver at the end of a stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itergp.likelihoods import VariationalSite
from itergp.operators import slices
from itergp.solvers.action_buffer import ActionBuffer
from itergp.solvers.precision import Actions, LowRankPrecision, columns_times, marginal_covariance, multiply
from itergp.solvers.problem import Problem
from itergp.solvers.search_space import SearchSpace

_ELBO_SEED = 1
_CHUNK_ROWS = 8192


@dataclass(frozen=True)
class Posterior:
    """Mean and covariance at the end of a stage.

    Attributes:
        representer_weights: V ``(N, C)``.
        latent_values: f ``(N, C)``.
        latent_covariance: Marginal covariances at the training inputs ``(N, C, C)``.
        precision: The low-rank precision.
        objective: Psi.
        norm_squared: q at or above the squared distance to the mode.
        space: Search space for a warm start, or None.
        coordinates: Of V in it, or None.
        curvature: W ``(N, C, C)`` that the covariance belongs to, or None.
        actions: Actions and their kernel products for a warm start, or None.
        support: Rows outside which weights and actions are zero ``(M,)``, the actions being kept on them alone; None for all.
    """

    representer_weights: Tensor
    latent_values: Tensor
    latent_covariance: Tensor
    precision: LowRankPrecision
    objective: float
    norm_squared: float
    space: SearchSpace | None = None
    coordinates: Tensor | None = None
    curvature: Tensor | None = None
    actions: ActionBuffer | None = None
    support: Tensor | None = None

    def log_marginal_likelihood(self) -> float:
        """GPML eq. 3.32 with the log-determinant within the actions."""
        return -self.objective - 0.5 * self.precision.log_determinant()

    def elbo(self, problem: Problem) -> float:
        """``E_q[log p(y | f)] - KL(q || p)`` for ``q`` this posterior: a lower bound on ``log p(y)``.

        Quadrature for C = 1; for several latent functions an estimate by fixed samples, others than those of the site.
        """
        site = VariationalSite.from_covariance(problem.site.observations, self.latent_covariance, seed=_ELBO_SEED)
        quadratic = problem.inner(self.representer_weights, self.latent_values - problem.mean)
        return problem.with_site(site).log_density(self.latent_values) - 0.5 * (quadratic + self.precision.kl_terms())


@dataclass(frozen=True)
class CovarianceResult:
    """A covariance and what its kernel pass gave besides: ``precision``, marginals ``(N, C, C)``, ``K R`` ``(N, C)``."""

    precision: LowRankPrecision
    latent_covariance: Tensor
    extra: Tensor | None


def posterior_covariance(problem: Problem, actions: Actions, extra: Tensor | None = None) -> CovarianceResult:
    """Conditions on actions in one kernel pass.

    Args:
        problem: The problem.
        actions: A. With an extra block they are put beside it, and kept there: a caller that holds on to these keeps both.
        extra: A block ``(N, C)`` to multiply in the same pass.
    """
    rank, block = actions.rank, actions.values
    if extra is not None:
        block = torch.cat([block, extra.unsqueeze(-1)], -1)
        actions = Actions(block[..., :rank])
    products = multiply(problem.operator, block)
    precision = LowRankPrecision.from_products(actions, products[..., :rank], problem.rows)
    variance = problem.prior_variance()
    latent_covariance = variance.new_empty(*variance.shape, variance.shape[-1])
    for i in slices(variance.shape[0], _CHUNK_ROWS):  # the whitened products of all rows are as large as the products
        latent_covariance[i] = marginal_covariance(variance[i], precision.whiten(products[i, ..., :rank]))
    return CovarianceResult(precision, latent_covariance, None if extra is None else products[..., rank].clone())


def support_covariance(problem: Problem, actions: Actions, support: Tensor) -> CovarianceResult:
    """Conditions on actions of some rows, at the cost of their kernel columns and of one block of rows of ``K A`` at a time.

    Args:
        problem: The problem.
        actions: A on the support ``(M, C, r)``.
        support: Its row numbers ``(M,)``.
    """
    operator, values = problem.operator, actions.values
    own = columns_times(operator.entries(support, support), values)
    precision = LowRankPrecision.from_products(actions, own)
    variance = problem.prior_variance()
    latent_covariance = variance.new_empty(*variance.shape, variance.shape[-1])

    def write(rows: slice, entries: Tensor) -> None:
        whitened = precision.whiten(columns_times(entries, values))
        latent_covariance[rows] = marginal_covariance(variance[rows], whitened)

    operator.with_columns(support, write)
    return CovarianceResult(precision, latent_covariance, None)


def prior_covariance(problem: Problem) -> CovarianceResult:
    """No actions: the prior's covariance."""
    actions = Actions.empty(problem.mean)
    precision = LowRankPrecision.from_products(actions, actions.values, problem.rows)
    covariance = torch.diag_embed(problem.prior_variance())
    return CovarianceResult(precision, covariance, None)

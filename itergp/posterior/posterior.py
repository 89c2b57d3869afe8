"""``Posterior``: mean and covariance, as a solver finds them and a solution keeps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from itergp.likelihoods import VariationalSite
from itergp.numerics.blocks import curvature_eigen
from itergp.numerics.distinct_rows import DistinctRows
from itergp.numerics.spectral import symmetric
from itergp.operators import slices
from itergp.parallel import ALL_ROWS, RowPartition
from itergp.persistence import DERIVED
from itergp.posterior.dense import apply_kernels, dense_posterior
from itergp.posterior.local_actions import LocalActions, functionals_of, reduced
from itergp.posterior.precision import (
    Actions,
    LowRankPrecision,
    as_row_covariance,
    is_negative,
    marginal_covariance,
    multiply,
)
from itergp.posterior.problem import Problem
from itergp.posterior.warm_start import WarmStart

EXACT_VALUES = 1024  # latent values N C of which every one is an action: dense matrices of that size cost nothing
_NOISY = 4.0  # median noise of actions for another curvature than their own, beyond which they are chosen anew
# Of one latent function. With several they cost C times as much, and what is rough there, saturated classes, has little
# curvature for neighbours to tell by: measured, no prediction was better for them.
_NEIGHBOURS, _NEIGHBOURS_ALONE = 16, 64
_ELBO_SEED = 1
_CHUNK_ROWS = 8192
COLUMNS_TOGETHER = 16  # of products that are not kept


@dataclass(frozen=True)
class Posterior:
    """Mean and covariance: what a solver's ``finish`` gives, and what is left of it in a ``Solution``.

    The latent posterior mean is ``m(x) + k(x, X) V``, its covariance
    ``k(x, x') - k(x, X) A (I + A^T K A)^{-1} A^T k(X, x')``.

    Attributes:
        representer_weights: V ``(N, C)``.
        latent_values: Mean at the training inputs, ``f = m + K V`` ``(N, C)``.
        latent_covariance: Marginal covariances at the training inputs ``(N, C, C)``.
        precision: The low-rank precision.
        objective: ``Psi`` at the mean, nats.
        norm_squared: q at or above the squared distance to the mode, infinite where it is not known; in a solution the
            certificate's, where there is one.
        curvature: W ``(N, C, C)`` that the covariance belongs to; None if the solver does not say.
        support: Rows ``(M,)`` outside which weights and the precision's actions are zero, the latter being kept on them alone;
            None for all rows.
        local: Local actions: what an input's covariance is conditioned on besides the precision's actions, or None.
        products: ``K A`` at the training inputs ``(N, C, r)``, from which the covariance for another curvature follows; None
            if there are none, and in a solution.
        warm_start: What the solver can go on from, or None; a solution has it beside its posterior.
        rows: Which of the N rows are here: all, unless the rows are divided among processes. Solvers leave it out.
        distinct: Of a model whose equal training rows share their latent values: which do. The N rows are then the distinct
            ones, which solvers see alone. None where each row has its own. Solvers leave it out.
    """

    representer_weights: Tensor
    latent_values: Tensor
    latent_covariance: Tensor
    precision: LowRankPrecision
    objective: float
    norm_squared: float = field(default=float("inf"), metadata=DERIVED)
    curvature: Tensor | None = None
    support: Tensor | None = None
    local: LocalActions | None = None
    products: Tensor | None = field(default=None, metadata=DERIVED)
    warm_start: WarmStart | None = field(default=None, metadata=DERIVED)
    rows: RowPartition = field(default=ALL_ROWS, metadata=DERIVED)
    distinct: DistinctRows | None = None

    @property
    def rank(self) -> int:
        """Number of actions that the covariance is conditioned on."""
        return self.precision.rank

    def kept(self, rows: RowPartition) -> Posterior:
        """What a solution keeps: neither products nor what the next solve starts from.

        Args:
            rows: Which rows are here.
        """
        return replace(self, products=None, warm_start=None, rows=rows)

    def weights_on_support(self) -> Tensor:
        """V where the precision's actions are: ``(N, C)``, or ``(M, C)`` on the support."""
        weights = self.representer_weights
        return weights if self.support is None else self.rows.select(weights, self.support)

    def all_actions(self) -> Tensor:
        """The precision's actions at all rows ``(N, C, r)``."""
        actions = self.precision.actions
        if self.support is None:
            return actions
        full = actions.new_zeros(self.representer_weights.shape[0], *actions.shape[1:])
        which, own = self.rows.local_indices(self.support)
        return full.index_copy_(0, own, actions[which])

    # -------------------------------------------------------------- other rows, another device
    def gather(self) -> Posterior:
        """The same with all rows in every process, which must all call this."""
        return self._with_rows(self.rows.gather, ALL_ROWS) if self.rows.sharded else self

    def divide(self, rows: RowPartition) -> Posterior:
        """The same with the rows of this process alone; the reverse of ``gather``."""
        return self if rows == self.rows else self._with_rows(rows.local, rows)

    def _with_rows(self, of: Callable[[Tensor], Tensor], rows: RowPartition) -> Posterior:
        """The same with every array of rows changed."""
        precision, local = self.precision, self.local
        if self.support is None:  # actions on a support are the same in every process
            precision = replace(precision, actions=of(precision.actions))
        return replace(
            self.kept(rows),
            representer_weights=of(self.representer_weights),
            latent_values=of(self.latent_values),
            latent_covariance=of(self.latent_covariance),
            precision=precision,
            curvature=None if self.curvature is None else of(self.curvature),
            local=None
            if local is None
            else replace(local, root=of(local.root), whitened=of(local.whitened), partition=rows),
        )

    def at_rows(self, places: Tensor, size: int) -> Posterior:
        """The same function as a start for other rows, by weights at some of them; others have no posterior yet.

        Args:
            places: Which of those rows the present ones are ``(N,)``; several may be one.
            size: How many rows there are.
        """

        def added(values: Tensor) -> Tensor:
            return values.new_zeros(size, *values.shape[1:]).index_add_(0, places, values)

        def put(values: Tensor) -> Tensor:
            return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)

        precision = self.precision
        if self.support is None:  # those of a support are kept by row number
            precision = replace(precision, actions=added(precision.actions))
        return replace(
            self.kept(self.rows),
            representer_weights=added(self.representer_weights),
            latent_values=put(self.latent_values),
            latent_covariance=put(self.latent_covariance),
            precision=precision,
            norm_squared=float("inf"),
            curvature=None,
            support=None if self.support is None else places[self.support],
            local=None,
            distinct=None,
        )

    def to(self, like: Tensor) -> Posterior:
        """The same in the dtype and on the device of ``like``."""
        precision = LowRankPrecision(
            self.precision.actions.to(like),
            self.precision.gram.to(like.device),
            self.precision.factor.to(like.device),
        )
        return replace(
            self.kept(self.rows),
            representer_weights=self.representer_weights.to(like),
            latent_values=self.latent_values.to(like),
            latent_covariance=self.latent_covariance.to(like),
            precision=precision,
            curvature=None if self.curvature is None else self.curvature.to(like),
            support=None if self.support is None else self.support.to(like.device),
            local=None if self.local is None else self.local.to(like),
            distinct=None if self.distinct is None else self.distinct.to(like.device),
        )

    # ------------------------------------------------------------------------- evidence
    def log_marginal_likelihood(self) -> float:
        """GPML eq. 3.32 with the log-determinant within the actions."""
        return -self.objective - 0.5 * self.precision.log_determinant()

    def elbo(self, problem: Problem) -> float:
        """``E_q[log p(y | f)] - KL(q || p)`` for ``q`` this posterior: a lower bound on ``log p(y)``.

        Quadrature for C = 1; for several latent functions an estimate by fixed samples, others than those of the site. Where
        every input has neighbours of its own, q has the mean and the covariance of the actions that all inputs share: that is a
        Gaussian whose divergence from the prior is known.
        """
        marginals = self.latent_covariance if self.local is None else self._shared_marginals(problem)
        site = VariationalSite.from_covariance(problem.site.observations, marginals, seed=_ELBO_SEED)
        quadratic = problem.inner(self.representer_weights, self.latent_values - problem.mean)
        return problem.with_site(site).log_density(self.latent_values) - 0.5 * (quadratic + self.precision.kl_terms())

    def _shared_marginals(self, problem: Problem) -> Tensor:
        """Marginal covariances at the training inputs that the precision's actions alone give ``(N, C, C)``."""
        assert self.products is not None
        prior, marginals = problem.prior_marginals(), torch.empty_like(self.latent_covariance)
        for i in slices(prior.shape[0], _CHUNK_ROWS):
            marginals[i] = marginal_covariance(prior[i], self.precision.whiten(self.products[i]))
        return marginals


@dataclass(frozen=True)
class CovarianceResult:
    """A covariance, and what it was made from.

    Attributes:
        precision: The low-rank precision.
        latent_covariance: Marginal covariances at the training inputs ``(N, C, C)``, those of local actions taken off.
        products: ``K A`` at the training inputs ``(N, C, r)``; None if the covariance is exact, or they were too large to keep.
        local: The local actions, or None.
        extra: ``K R`` ``(N, C)`` for a block that was multiplied in the same pass, or None.
    """

    precision: LowRankPrecision
    latent_covariance: Tensor
    products: Tensor | None
    local: LocalActions | None = None
    extra: Tensor | None = None


def wanted_neighbours(num_latents: int, wanted: int | None, *, pay: bool = True, alone: bool = False) -> int:
    """Rows that an input is conditioned on: what the user says, or the default if that is None.

    Args:
        num_latents: C.
        wanted: What the user says.
        pay: Whether the operator says that ``neighbours_pay``.
        alone: Whether it says that actions on all rows do not.
    """
    number = _NEIGHBOURS_ALONE if alone else _NEIGHBOURS
    return (number if num_latents == 1 and pay else 0) if wanted is None else wanted


def neighbours_of(problem: Problem, wanted: int | None) -> int:
    """Rows that every input is conditioned on besides: as many as are wanted, if their kernel entries can be had.

    Args:
        problem: The problem.
        wanted: What the user says, or None.
    """
    operator = problem.operator
    wanted = wanted_neighbours(problem.num_latents, wanted, pay=operator.neighbours_pay, alone=not operator.actions_pay)
    return wanted if wanted > 0 and problem.operator.evaluates_groups else 0


def exact_covariance(problem: Problem, curvature: Tensor, extra: Tensor | None = None) -> CovarianceResult:
    """Conditions on every latent value, with dense matrices of size N C.

    Args:
        problem: A small problem.
        curvature: W ``(N, C, C)``.
        extra: A block ``(N, C)`` to multiply by the kernel, which then counts as a pass.
    """
    operator, everything = problem.operator, torch.arange(problem.num_rows, device=curvature.device)
    kernel = (operator.entries(everything, everything) if extra is None else operator.dense()).double()
    values, vectors = curvature_eigen(curvature)
    root = (vectors * values.sqrt().unsqueeze(-2)).double()
    precision, covariance = dense_posterior(kernel, root, problem.prior_marginals())
    precision = replace(precision, actions=precision.actions.to(problem.mean))
    product = None if extra is None else apply_kernels(kernel, extra.double()).to(extra)
    return CovarianceResult(precision, covariance.to(problem.mean), None, extra=product)


def posterior_covariance(
    problem: Problem,
    actions: Actions,
    curvature: Tensor,
    extra: Tensor | None = None,
    *,
    num_neighbours: int = 0,
    by_columns: bool = False,
) -> CovarianceResult:
    """Conditions on actions in one kernel pass, or in two of a few columns at a time.

    Args:
        problem: The problem.
        actions: A. With an extra block they are put beside it, and kept there: a caller that holds on to these keeps both.
        curvature: W ``(N, C, C)``.
        extra: A block ``(N, C)`` to multiply in the same pass.
        num_neighbours: Rows that every input is conditioned on besides.
        by_columns: Whether products are made a few columns at a time, and again for the marginals, so that the actions are the
            only array of their size; without neighbours.
    """
    if by_columns:
        return _by_columns(problem, actions, extra)
    rank, block = actions.rank, actions.values
    if extra is not None:
        block = torch.cat([block, extra.unsqueeze(-1)], -1)
        actions = Actions(block[..., :rank])
    products = multiply(problem.operator, block)
    precision = LowRankPrecision.from_products(actions, products[..., :rank], problem.rows)
    result = _condition(problem, precision, products[..., :rank], curvature, num_neighbours)
    return result if extra is None else replace(result, extra=products[..., rank].clone())


def _by_columns(problem: Problem, actions: Actions, extra: Tensor | None) -> CovarianceResult:
    """Conditions on actions whose products are not kept."""
    operator, values, columns = problem.operator, actions.values, slices(actions.rank, COLUMNS_TOGETHER)
    chunks = slices(values.shape[0], _CHUNK_ROWS)
    gram = torch.zeros(actions.rank, actions.rank, dtype=torch.float64, device=values.device)
    with operator.counts.as_one_pass():
        product = None if extra is None else multiply(operator, extra.unsqueeze(-1)).squeeze(-1)
        for i in columns:
            products = multiply(operator, values[..., i].contiguous())
            for rows in chunks:
                gram[:, i] += values[rows].flatten(0, 1).mT @ products[rows].flatten(0, 1)
    precision = LowRankPrecision.from_gram(values, symmetric(problem.rows.all_reduce_sum(gram)))
    covariance = as_row_covariance(problem.prior_marginals()).clone()
    unit = torch.eye(actions.rank, dtype=torch.float64, device=values.device)
    mix = torch.linalg.solve_triangular(precision.factor.mT, unit, upper=True).to(values)
    with operator.counts.as_one_pass():
        for i in columns:
            whitened = multiply(operator, values @ mix[:, i])
            for rows in chunks:
                covariance[rows].baddbmm_(whitened[rows], whitened[rows].mT, alpha=-1.0)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    diagonal.clamp_min_(0.0)
    return CovarianceResult(precision, covariance, None, extra=product)


def support_covariance(
    problem: Problem, actions: Actions, curvature: Tensor, products: Tensor, support: Tensor, *, num_neighbours: int = 0
) -> CovarianceResult:
    """Conditions on actions of some rows, at the cost of no kernel entries but those of neighbours.

    Args:
        problem: The problem.
        actions: A on the support ``(M, C, r)``.
        curvature: W ``(N, C, C)``.
        products: ``K A`` at all rows ``(N, C, r)``.
        support: Its row numbers ``(M,)``.
        num_neighbours: Rows that every input is conditioned on besides.
    """
    precision = LowRankPrecision.from_products(actions, problem.rows.select(products, support))
    return _condition(problem, precision, products, curvature, num_neighbours, support)


def reconditioned(problem: Problem, posterior: Posterior, curvature: Tensor) -> Posterior | None:
    """The posterior with the covariance that its actions and neighbours give for another curvature, at no kernel pass.

    None if it has no products, or the curvature is so different that the actions, chosen for another one, have become noise.

    Args:
        problem: The problem.
        posterior: A posterior.
        curvature: W ``(N, C, C)``.
    """
    if posterior.products is None:
        return None
    actions, products, noise = Actions(posterior.precision.actions).reweighted(
        posterior.products, curvature, posterior.support, problem.rows
    )
    if noise > _NOISY:
        return None
    if posterior.support is None:
        precision = LowRankPrecision.from_products(actions, products, problem.rows)
    else:
        precision = LowRankPrecision.from_products(actions, problem.rows.select(products, posterior.support))
    number = 0 if posterior.local is None else posterior.local.num_neighbours
    result = _condition(problem, precision, products, curvature, number, posterior.support)
    return replace(
        posterior,
        precision=precision,
        latent_covariance=result.latent_covariance,
        products=products,
        local=result.local,
        curvature=curvature,
    )


def _condition(
    problem: Problem,
    precision: LowRankPrecision,
    products: Tensor,
    curvature: Tensor,
    num_neighbours: int,
    support: Tensor | None = None,
) -> CovarianceResult:
    """Marginals at the training inputs, a block of rows at a time: whitened products of all are as large as the products.

    Raises:
        LinAlgError: If one is negative by more than rounding.
    """
    prior, (own_rows, latents) = problem.prior_marginals(), products.shape[:2]
    latent_covariance = prior.new_empty(own_rows, latents, latents)
    local, hoods, near = None, None, None
    order, negative = torch.arange(problem.operator.num_own_rows, device=products.device), False
    if num_neighbours > 0 and precision.rank > 0:  # without actions there is no whitening to build upon
        local = LocalActions.of(
            precision,
            products,
            curvature,
            num_neighbours,
            functionals=functionals_of(problem.num_latents),
            support=support,
            partition=problem.rows,
        )
        hoods = local.neighbourhoods(problem.kernel_operator)
        numbers, near = hoods.near_training(num_neighbours)
        order = numbers - problem.rows.start()
    for i in problem.rows.chunks(problem.num_rows, _CHUNK_ROWS if local is None else local.chunk_rows):
        own = order[i]
        whitened = precision.whiten(products[own])
        negative = negative or is_negative(prior[own], whitened)
        covariance = marginal_covariance(prior[own], whitened)
        if local is not None and hoods is not None and near is not None:
            inputs = problem.kernel_operator.inputs[..., own + problem.rows.start(), :]
            covariance = reduced(covariance, local.reduction(hoods, inputs, whitened, near.part(i)))
        latent_covariance[own] = covariance
    if problem.rows.all_reduce_any(negative):
        raise torch.linalg.LinAlgError("a posterior variance is negative")
    return CovarianceResult(precision, latent_covariance, products, local)


def prior_covariance(problem: Problem) -> CovarianceResult:
    """No actions: the prior's covariance."""
    actions = Actions.empty(problem.mean)
    precision = LowRankPrecision.from_products(actions, actions.values, problem.rows)
    covariance = as_row_covariance(problem.prior_marginals())
    return CovarianceResult(precision, covariance, actions.values)

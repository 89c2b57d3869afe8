"""``ComputationAwareELBO``: a lower bound on the evidence that pays for what was not computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gpytorch
import torch
from torch import Tensor

from itergp.checks import require_positive
from itergp.errors import InputError
from itergp.likelihoods import Observations, VariationalSite
from itergp.likelihoods.base import node_offsets
from itergp.models import NonConjugateGP
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.numerics.blocks import psd_root
from itergp.numerics.distinct_rows import DistinctRows
from itergp.objectives.base import DifferentiableCovariance, Objective, differentiable, prior_marginals
from itergp.operators import Prior, own_rows
from itergp.posterior.natural_gradients import DENSE_SHARE, DENSE_VALUES, DenseProblem, GaussianSites
from itergp.posterior.precision import cross_multiply, multiply
from itergp.solvers import Solution
from itergp.solvers.warm_starts import StoredWarmStart, as_stored

_SEED = 1  # other samples than those the posterior mean was found with


@dataclass(frozen=True)
class _Held:
    """The variational family: V ``(M, C)`` and A ``(M, C, r)``, at the rows of a support or at all distinct ones.

    With latent means ``(M, C)`` and covariances ``(M, C, C)`` there, where the curvature at these moves with parameters.
    """

    weights: Tensor
    actions: Tensor
    support: Tensor | None
    distinct: DistinctRows | None
    mean: Tensor | None = None
    marginals: Tensor | None = None


@dataclass(frozen=True)
class _ELBOState:
    """What evaluations leave behind for later ones."""

    evaluations: int
    held: _Held | None
    solution: Solution | None
    warm_start: StoredWarmStart | None
    sites: GaussianSites | None = None
    weights: Tensor | None = None
    left_to_solver: bool = False


class ComputationAwareELBO(Objective):
    """Evidence lower bound of the Gaussian posterior that the model's solver finds.

    With representer weights V and actions A held fixed, ``N(m + K V, K - K A (I + A^T K A)^{-1} A^T K)`` is a valid
    variational family for every hyperparameter, so the value is a true lower bound on ``log p(y)`` up to the error of the
    expectations (quadrature for C = 1, 32 fixed samples per row for several latent functions). Its gradient needs only the
    products ``K [V, A]``. The bound grows with the solver's covariance rank. The idea is that of Wenger et al. 2024 (CaGP),
    extended to likelihoods that are not Gaussian.

    Cost of one evaluation with gradient: two kernel passes of ``C (r + 1)`` columns, and the conditioning that precedes it,
    warm-started from the last search space: one pass to renew it and a few to refine it. Memory: ``N C r`` numbers. With a
    solver whose posterior has a support of M rows (``LinearTimeNewton``) the products are with ``N M`` entries, and the
    expectations can be estimated from a batch of rows.

    Args:
        likelihood: The model's likelihood.
        model: The model.
        condition_every: Evaluations for which one conditioning serves; default 1. In between the bound is still a true one.
        batch_rows: Rows in a random batch, another one for each evaluation, from which the sum of expected log-densities is
            estimated without bias; default all. Needs a posterior with a support.
        seed: Of the batches.
        initialise_kernel: Whether hyperparameters still at their default get a start from the data.

    Raises:
        InputError: If a batch is asked for and the posterior has no support, when the bound is first evaluated.

    Examples:
        >>> import torch, itergp
        >>> x = torch.linspace(-2, 2, 40).unsqueeze(-1)
        >>> y = (x[:, 0] > 0).long()
        >>> model = itergp.models.GP(x, y, itergp.likelihoods.BernoulliLikelihood()).train()
        >>> mll = itergp.objectives.ComputationAwareELBO(model.likelihood, model)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> values = []
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     loss = -mll(model(x), model.train_targets)
        ...     loss.backward()
        ...     _ = optimizer.step()
        ...     values.append(-loss.item())
        >>> values[-1] > values[0]
        True
    """

    state_type = _ELBOState

    def __init__(
        self,
        likelihood: gpytorch.likelihoods.Likelihood,
        model: NonConjugateGP,
        *,
        condition_every: int = 1,
        batch_rows: int | None = None,
        seed: int = 0,
        initialise_kernel: bool = True,
    ) -> None:
        super().__init__(likelihood, model, initialise_kernel=initialise_kernel)
        if condition_every < 1:
            raise InputError(f"`condition_every` must be at least 1. Got {condition_every}. Leave it out for 1.")
        require_positive("batch_rows", batch_rows, integer=True)
        self.condition_every, self.batch_rows, self.seed = int(condition_every), batch_rows, seed
        self._evaluations = 0
        self._held: _Held | None = None
        self._sites: GaussianSites | None = None  # with the weights, the family where dense matrices find it
        self._weights: Tensor | None = None
        self._left_to_solver = False

    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """``E_q[log p(y | f)] - KL(q || p)``."""
        value = self._dense_evidence(prior, observations)
        return self._evidence(prior, observations) if value is None else value

    def _evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """By products with weights and actions of the solver's posterior."""
        held = self._posterior()
        given = prior, observations
        prior, observations = share_latents(held.distinct, *given)
        actions = held.actions
        if self.condition_every == 1:  # otherwise they stay for the next evaluations
            actions = actions * _growth(held, observations)
        block = torch.cat([actions, held.weights.unsqueeze(-1)], -1)
        operator = differentiable(prior if held.support is None else prior.take(held.support), self.model)
        products = multiply(operator, block)
        covariance = DifferentiableCovariance(actions, products[..., :-1])
        quadratic = (held.weights * products[..., -1]).sum(dtype=torch.float64)
        scale = 1.0
        if held.support is not None:
            rows = self._batch(given[1].num_rows)
            if rows is not None:
                scale = given[1].num_rows / rows.numel()
                prior, observations = given[0].take(rows), given[1].take(rows)
            products = cross_multiply(operator, prior.features, block)
        mean = prior.mean + products[..., -1]
        nodes, node_weights = observations.standard_nodes(mean.detach(), seed=_SEED)
        marginal = covariance.marginal(prior_marginals(operator, prior.features), products[..., :-1])
        offsets = node_offsets(psd_root(marginal), nodes)
        fit = scale * observations.expected_log_density(mean, offsets, node_weights).sum(dtype=torch.float64)
        return fit - 0.5 * (quadratic + covariance.kl_terms())

    def checkpoint_state(self) -> _ELBOState:
        """The variational family, and the model's posterior with what the next one starts from."""
        solution = self.model.last_solution
        return _ELBOState(
            self._evaluations,
            self._held,
            solution,
            None if solution is None else as_stored(solution.warm_start),
            self._sites,
            self._weights,
            self._left_to_solver,
        )

    def resume(self, state: _ELBOState) -> None:
        """Goes on from ``checkpoint_state``; the model gets the posterior as a start, not as its present one."""
        self._evaluations, self._held = state.evaluations, state.held
        self._sites, self._weights, self._left_to_solver = state.sites, state.weights, state.left_to_solver
        if state.solution is not None:
            self.model.start_from(replace(state.solution, warm_start=state.warm_start))

    @property
    def by_dense_matrices(self) -> bool:
        """Whether the solver's posterior is the exact one, and latent values are so few that dense matrices find it faster."""
        model, solver = self.model.batch_elements[0], self.model.solver
        values = model.train_targets.shape[0] * model.calculus.num_latents
        limits = solver.max_passes, solver.time_limit, self.batch_rows
        own = own_rows(model.operator_kind, model.train_targets.shape[0], model.train_targets.device)
        exact = values <= min(DENSE_VALUES, solver.exact_values) and limits == (None, None, None) and not own.sharded
        return exact and model.approximation == "variational" and model.calculus.raises_bound

    def _dense_evidence(self, prior: Prior, observations: Observations) -> Tensor | None:
        """By dense matrices, or None where these do not find the posterior, or did not before."""
        if not self.by_dense_matrices or self._left_to_solver:
            return None
        prior, observations = share_latents(distinct_rows(self.model, prior), prior, observations)
        problem = DenseProblem.of(differentiable(prior, self.model), prior.mean, observations)
        moved = None
        if self._is_due():
            try:
                found = problem.variational_posterior(self._sites, tolerance=DENSE_SHARE * self.model.solver.tolerance)
            except torch.linalg.LinAlgError:
                found = None
            if found is None:
                self._left_to_solver = True
                return None
            self._sites, self._weights = found.sites, found.weights
            if self.condition_every == 1 and observations.likelihood.curvature != "hessian":
                moved = problem.expected_curvature(found)  # in which the bound is not stationary
        self._evaluations += 1
        assert self._sites is not None
        assert self._weights is not None
        curvature = self._sites.curvature
        if moved is not None:
            curvature = curvature + (moved - moved.detach())
        return problem.bound(self._weights, curvature, seed=_SEED)

    def _is_due(self) -> bool:
        """Whether the posterior is to be found again."""
        return (self._held is None and self._sites is None) or self._evaluations % self.condition_every == 0

    def _posterior(self) -> _Held:
        """Weights and actions, found again at the cadence that was asked for."""
        if self._held is None or self._is_due():
            self._held = self._solved()
        self._evaluations += 1
        return self._held

    def _solved(self) -> _Held:
        """The family of the solver's posterior at the present hyperparameters."""
        if self.model.current_solution is None:
            self.model.condition(time_limit=self.deadline.left())
        solution = self.model.conditioned.solution
        self.deadline.check()
        if solution.rows.sharded:
            raise InputError(
                "ComputationAwareELBO learns in one process. Got rows divided among several. Use PredictiveLogDensity, "
                "which every process evaluates alike on a subset, or operator='auto'."
            )
        actions = solution.precision.actions.contiguous()
        support, posterior, likelihood = solution.support, solution.posterior, self.model.calculus
        held = _Held(solution.weights_on_support(), actions, support, solution.distinct)
        if likelihood.curvature != "hessian" and likelihood.raises_bound and likelihood.num_latents == 1:
            rows = slice(None) if support is None else support
            held = replace(held, mean=posterior.latent_values[rows], marginals=posterior.latent_covariance[rows])
        if self.batch_rows is not None and solution.support is None:
            raise InputError(
                "`batch_rows` needs a posterior whose weights and actions are on a support of some rows. Got one on all "
                "rows: its divergence from the prior takes a pass over them. Use LinearTimeNewton(), or leave it out."
            )
        return held

    def _batch(self, num_rows: int) -> Tensor | None:
        if self.batch_rows is None or self.batch_rows >= num_rows:
            return None
        generator = torch.Generator().manual_seed(self.seed + self._evaluations)
        device = self.model.train_targets.device
        return torch.randint(num_rows, (self.batch_rows,), generator=generator).to(device)


def _growth(held: _Held, observations: Observations) -> Tensor:
    """1, with the derivatives ``(M, 1, 1)`` by which actions grow where their curvature moves with the likelihood's parameters.

    An action s that is conditioned on with noise ``W^{-1}`` is kept as ``s / (s^T W^{-1} s)^{1/2}``. Where W is the Hessian,
    the bound is stationary in it, and so it is 1.
    """
    if held.mean is None or held.marginals is None:
        return held.weights.new_ones(1, 1, 1)
    seen = observations if held.support is None else observations.take(held.support)
    site = VariationalSite.from_covariance(seen, held.marginals)
    with torch.enable_grad():
        curvature = site.covariance_curvature(held.mean)
        known = curvature > 0.0
        logarithm = torch.where(known, curvature, 1.0).log()
        return 1.0 + 0.5 * (logarithm - logarithm.detach())

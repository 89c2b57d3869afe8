"""``ComputationAwareELBO``: a lower bound on the evidence that pays for what was not computed."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods import Observations
from itergp.likelihoods.base import node_offsets
from itergp.likelihoods.blocks import psd_root
from itergp.models import NonConjugateGP
from itergp.objectives.base import DifferentiableCovariance, Objective, differentiable
from itergp.operators import Prior
from itergp.solvers.precision import multiply

_SEED = 1  # other samples than those the posterior mean was found with


class ComputationAwareELBO(Objective):
    """Evidence lower bound of the Gaussian posterior that the model's solver finds.

    With representer weights V and actions A held fixed, ``N(m + K V, K - K A (I + A^T K A)^{-1} A^T K)`` is a valid
    variational family for every hyperparameter, so the value is a true lower bound on ``log p(y)`` up to the error of the
    expectations (quadrature for C = 1, 32 fixed samples per row for several latent functions). Its gradient needs only the
    products ``K [V, A]``. The bound grows with the solver's covariance rank. The idea is that of Wenger et al. 2024 (CaGP),
    extended to likelihoods that are not Gaussian.

    Cost of one evaluation with gradient: two kernel passes of ``C (r + 1)`` columns, and the conditioning that precedes it,
    warm-started from the last search space: one pass to renew it and a few to refine it. Memory: ``N C r`` numbers.

    Args:
        likelihood: The model's likelihood.
        model: The model.
        condition_every: Evaluations for which one conditioning serves; default 1. In between the bound is still a true one.

    Examples:
        >>> import gpytorch, torch, itergp
        >>> class Classifier(itergp.models.NonConjugateGP):
        ...     def __init__(self, x, y, likelihood):
        ...         super().__init__(x, y, likelihood)
        ...         self.mean_module = gpytorch.means.ConstantMean()
        ...         self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        ...     def forward(self, x):
        ...         return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))
        >>> x = torch.linspace(-2, 2, 40).unsqueeze(-1)
        >>> y = (x[:, 0] > 0).long()
        >>> model = Classifier(x, y, itergp.likelihoods.BernoulliLikelihood()).train()
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

    def __init__(
        self, likelihood: gpytorch.likelihoods.Likelihood, model: NonConjugateGP, *, condition_every: int = 1
    ) -> None:
        super().__init__(likelihood, model)
        if condition_every < 1:
            raise InputError(f"`condition_every` must be at least 1. Got {condition_every}. Leave it out for 1.")
        self.condition_every = int(condition_every)
        self._evaluations = 0
        self._weights: Tensor | None = None
        self._actions: Tensor | None = None

    def evidence(self, prior: Prior, observations: Observations) -> Tensor:
        """``E_q[log p(y | f)] - KL(q || p)``."""
        weights, actions = self._posterior()
        operator = differentiable(prior, self.model)
        products = multiply(operator, torch.cat([actions, weights.unsqueeze(-1)], -1))
        covariance, smooth = DifferentiableCovariance(actions, products[..., :-1]), products[..., -1]
        mean = prior.mean + smooth
        nodes, node_weights = observations.likelihood.standard_nodes(mean.detach(), seed=_SEED)
        offsets = node_offsets(psd_root(covariance.marginal(operator.diagonal(), covariance.products)), nodes)
        fit = observations.expected_log_density(mean, offsets, node_weights).sum(dtype=torch.float64)
        quadratic = (weights * smooth).sum(dtype=torch.float64)
        return fit - 0.5 * (quadratic + covariance.kl_terms())

    def _posterior(self) -> tuple[Tensor, Tensor]:
        """Weights V and actions A, found again at the cadence that was asked for."""
        if self._weights is None or self._actions is None or self._evaluations % self.condition_every == 0:
            solution = self.model.solution
            self._weights, self._actions = solution.representer_weights, solution.all_actions()
        self._evaluations += 1
        return self._weights, self._actions

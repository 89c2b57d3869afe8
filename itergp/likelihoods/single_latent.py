"""``SingleLatentLikelihood``: what likelihoods with one latent function per row share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, latent_marginals
from itergp.likelihoods.mixtures import CountMixture, QuadratureMixture
from itergp.likelihoods.quadrature import gauss_hermite, psd_root

PREDICTIVE_NODES = 64


class SingleLatentLikelihood(Likelihood):
    """Base class for one latent function per row: a member says its density, two derivatives and what it is given f.

    A member defines ``_log_density(latent, y)``, ``_derivatives(latent, y)`` and ``_conditional(latent)``, all on tensors
    without a dimension for the latent function, and ``validate_targets``. Targets may have a second column that belongs to
    the observation, such as an exposure; the three methods then take it as a further argument.

    Attributes:
        counts: Whether observations are counts, and the conditional distribution has a float64 ``cdf``.
        second_column: Value of the second column when targets have only one; None if there is no second column.
    """

    counts: ClassVar[bool] = False
    second_column: ClassVar[float | None] = None

    @abstractmethod
    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        """``log p(y | f)``, all of one shape ``(..., N)``."""

    @abstractmethod
    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        """First derivative and curvature, ``(..., N)`` each."""

    @abstractmethod
    def _conditional(self, latent: Tensor, *second: Tensor) -> Distribution:
        """``p(y | f)`` with the batch shape of ``latent``."""

    # ------------------------------------------------------------ the calculus
    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log p(y_n | f_n)``, with all normalising constants."""
        latent = f.squeeze(-1)
        return self._log_density(latent, *self._columns(targets, latent))

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and curvature in closed form."""
        latent = f.squeeze(-1)
        gradient, curvature = self._derivatives(latent, *self._columns(targets, latent))
        return gradient.unsqueeze(-1), curvature.expand(latent.shape)[..., None, None]

    def _columns(self, targets: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        targets = targets.to(like.dtype)
        if self.second_column is None:
            return (targets,)
        return targets.unbind(-1) if targets.dim() == 2 else (targets, torch.full_like(targets, self.second_column))

    # -------------------------------------------------------------- predictive
    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        """Conditional distribution at latent values ``(..., N)``; keywords as in ``predictive``."""
        second = next((kwargs[name] for name in self.predictive_options if kwargs.get(name) is not None), None)
        if self.second_column is None or not self.predictive_options:
            return self._conditional(function_samples)
        return self._conditional(function_samples, self._second(function_samples, second))

    def predictive(self, mean: Tensor, covariance: Tensor) -> QuadratureMixture:
        """Mixture of the conditional distribution over 64 Gauss-Hermite nodes."""
        return self._integrate(mean, covariance)

    def _integrate(self, mean: Tensor, covariance: Tensor, *second: Tensor) -> QuadratureMixture:
        nodes, weights = gauss_hermite(PREDICTIVE_NODES, like=mean)
        components = self._conditional(mean + psd_root(covariance)[..., 0] * nodes, *(s.unsqueeze(-1) for s in second))
        return (CountMixture if self.counts else QuadratureMixture)(weights, components)

    def _second(self, like: Tensor, value: Any) -> Tensor:
        """The second column for new rows ``(M,)``: a number for all, or one per row."""
        name = self.predictive_options[0]
        value = self.second_column if value is None else value
        column = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if column.dim() > 1 or (column.dim() == 1 and column.shape[0] != like.shape[-1]):
            raise InputError(
                f"`{name}` must be a number, or one per row with shape ({like.shape[-1]},). Got {tuple(column.shape)}. "
                "Select the same rows of both."
            )
        if not bool((torch.isfinite(column) & (column > 0)).all()):
            raise InputError(f"`{name}` must be positive and finite. Got {column.min().item():g}. Check the column.")
        return column.expand(like.shape[-1:])

    def log_marginal(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``log E[p(y_n | f_n)]`` for each row ``(N,)``, over 64 Gauss-Hermite nodes; targets as for training."""
        mean, covariance = latent_marginals(function_dist, self.num_latents)
        nodes, weights = gauss_hermite(PREDICTIVE_NODES, like=mean)
        f = mean + psd_root(covariance)[..., 0] * nodes.view(-1, 1, 1)
        targets = self.validate_targets(observations)
        log_weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
        return torch.logsumexp(self.log_density(f, targets) + log_weights.unsqueeze(-1), 0)

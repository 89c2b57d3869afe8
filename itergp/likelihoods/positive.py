"""Positive observations: amounts, durations, concentrations."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.distributions import MultivariateNormal
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import Distribution, LogNormal

from itergp.likelihoods.base import Likelihood, Observed
from itergp.likelihoods.distributions import Gamma
from itergp.likelihoods.gaussian import GaussianLikelihood
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.predictive import LogNormalPredictive
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.special import MAX_EXPONENT, continued_exp
from itergp.likelihoods.targets import as_floats, check_targets, require_inside

_REMEDY = "Add the unit of measurement's resolution to zeros, or use another likelihood."


class GammaLikelihood(SingleLatentLikelihood):
    """Positive targets with mean ``exp(f)`` and variance ``mean^2 / shape``; log-concave, closed-form Hessian.

    The coefficient of variation ``1 / sqrt(shape)`` is constant. Shape 1 is the exponential distribution.

    Args:
        shape: Initial shape; default softplus(0), about 0.69.
        shape_prior: Prior over the shape.
        shape_constraint: Constraint on the shape; default positive.
    """

    observes: ClassVar[Observed] = "positive"
    shape = ConstrainedParameter()
    """Shape ``(1,)``: the inverse squared coefficient of variation."""

    def __init__(
        self, shape: float | None = None, shape_prior: Prior | None = None, shape_constraint: Interval | None = None
    ) -> None:
        super().__init__()
        type(self).shape.register(self, shape_constraint or Positive(), shape_prior, shape)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be positive; returned as floats."""
        check_targets(targets, "GammaLikelihood")
        require_inside(targets, targets > 0, "GammaLikelihood", "positive", _REMEDY)
        return as_floats(targets)

    def typical_latents(self, targets: Tensor) -> Tensor:
        """Logarithm of the mean ``(1,)``."""
        return targets.mean().log().unsqueeze(0)

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        shape, wide, log_y = self.shape.to(latent.dtype), self.shape.double(), y.log()
        constant = (wide * wide.log() - torch.lgamma(wide)).to(latent.dtype)  # large terms cancel
        ratio, _ = continued_exp(log_y - latent)
        return constant + shape * (log_y - latent - ratio) - log_y

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        shape, (_, ratio) = self.shape.to(latent.dtype), continued_exp(y.log() - latent)
        return shape * (ratio - 1.0), shape * ratio

    def _exponential(self, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor] | None:
        return -self.shape.to(y.dtype), -torch.ones_like(y)

    def _conditional(self, latent: Tensor, *second: Tensor) -> Gamma:
        shape = self.shape.to(latent.dtype)
        return Gamma(shape.expand_as(latent), shape * torch.exp(-latent.clamp(-MAX_EXPONENT, MAX_EXPONENT)), False)


class LogNormalLikelihood(GaussianLikelihood):
    """Positive targets whose logarithm is ``f`` plus Gaussian noise: everything is exact, ``exp(f)`` is the median.

    The posterior is that of Gaussian regression on ``log(y)``; densities, moments and quantiles are those of ``y``.

    Args:
        noise: Initial noise variance of ``log(y)``.
        noise_prior: Prior over the noise variance.
        noise_constraint: Constraint on the noise variance; default above 1e-8.
    """

    observes: ClassVar[Observed] = "positive"

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be positive; returned as floats."""
        check_targets(targets, "LogNormalLikelihood")
        require_inside(targets, targets > 0, "LogNormalLikelihood", "positive", _REMEDY)
        return as_floats(targets)

    def typical_latents(self, targets: Tensor) -> Tensor:
        """Mean of the logarithm ``(1,)``."""
        return targets.log().mean().unsqueeze(0)

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log N(log y; f, noise) - log y``."""
        log_y = targets.to(f.dtype).log()
        return super().log_density(f, log_y) - log_y

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(log y - f) / noise`` and curvature ``1 / noise``."""
        return super().derivatives(f, targets.to(f.dtype).log())

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> LogNormal:  # type: ignore[override]
        """Conditional distribution at latent values ``(..., N)``."""
        return LogNormal(function_samples, self.noise.to(function_samples.dtype).sqrt(), validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> LogNormalPredictive:  # type: ignore[override]
        """Closed form: log-normal with the variance of the latent function plus noise."""
        normal = super().predictive(mean, covariance)
        return LogNormalPredictive(normal.loc, normal.scale, validate_args=False)

    def marginal(self, function_dist: MultivariateNormal, *args: Any, **kwargs: Any) -> Distribution:
        """Predictive distribution row by row: what ``likelihood(model(x))`` returns."""
        return Likelihood.marginal(self, function_dist, *args, **kwargs)

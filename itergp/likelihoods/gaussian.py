"""Real-valued observations with Gaussian noise: where everything is exact."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import Normal

from itergp.likelihoods.base import Likelihood
from itergp.likelihoods.parameters import SMALLEST_NOISE, ConstrainedParameter
from itergp.likelihoods.predictive import NormalPredictive
from itergp.likelihoods.targets import as_floats, check_targets


class GaussianLikelihood(Likelihood):
    """``y = f + noise``; the posterior equals GPyTorch's ``ExactGP`` up to what was computed.

    Args:
        noise: Initial noise variance (response units squared).
        noise_prior: Prior over the noise variance.
        noise_constraint: Constraint on the noise variance; default above 1e-8; GPyTorch's is above 1e-4.
    """

    quadratic = True
    noise = ConstrainedParameter()
    """Noise variance ``(1,)``."""

    def __init__(
        self,
        noise: float | None = None,
        noise_prior: Prior | None = None,
        noise_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        type(self).noise.register(self, noise_constraint or GreaterThan(SMALLEST_NOISE), noise_prior, noise)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be finite; returned as floats."""
        check_targets(targets, "GaussianLikelihood")
        return as_floats(targets)

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log N(y; f, noise)``."""
        residual = targets.to(f.dtype) - f.squeeze(-1)
        noise = self.noise.to(f.dtype)
        return -0.5 * (residual.square() / noise + noise.log() + math.log(2.0 * math.pi))

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(y - f) / noise`` and curvature ``1 / noise``."""
        precision = self.noise.to(f.dtype).reciprocal()
        gradient = (targets.to(f.dtype).unsqueeze(-1) - f) * precision
        return gradient, precision.expand(f.shape).unsqueeze(-1)

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Normal:
        """Conditional distribution at latent values ``(..., N)``."""
        return Normal(function_samples, self.noise.to(function_samples.dtype).sqrt(), validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> NormalPredictive:
        """Closed form: variance of the latent function plus noise."""
        variance = covariance[..., 0, 0].clamp_min(0.0) + self.noise.to(mean.dtype)
        return NormalPredictive(mean[..., 0], variance.sqrt(), validate_args=False)

    def marginal(
        self, function_dist: gpytorch.distributions.MultivariateNormal, *args: Any, **kwargs: Any
    ) -> gpytorch.distributions.MultivariateNormal:
        """The joint distribution of observations, as GPyTorch's likelihood of the same name gives it."""
        covariance = function_dist.lazy_covariance_matrix.add_diagonal(self.noise.to(function_dist.mean.dtype))
        return function_dist.__class__(function_dist.mean, covariance)

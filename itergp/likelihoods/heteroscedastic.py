"""Real-valued observations whose noise varies with the inputs."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Normal

from itergp.likelihoods.base import Likelihood
from itergp.likelihoods.mixtures import QuadratureMixture
from itergp.likelihoods.quadrature import gauss_hermite, node_covariance
from itergp.likelihoods.special import continued_exp
from itergp.likelihoods.targets import as_floats, check_targets

_NODES_PER_FUNCTION = 7
_PREDICTIVE_NODES = 64
_MAX_LOG_PRECISION = 40.0  # squared residuals of this precision are finite in float32


class HeteroscedasticGaussianLikelihood(Likelihood):
    """``y ~ N(f_1, exp(f_2))``: two latent functions, the mean and the logarithm of the noise variance.

    Not jointly log-concave; the curvature is the Fisher information ``diag(exp(-f_2), 1/2)``, which is also that of Gauss and
    Newton. Give mean and kernel a ``batch_shape`` of 2 unless one kernel should serve both functions. The noise where the
    prior is at its mean is ``exp(mean)``: standardise targets, or set the second mean near the logarithm of their variance.
    """

    num_latents = 2
    log_concave = False
    curvature = "fisher"
    bounded_density = False  # a mean that meets its target wants no noise
    distinct_latents = True
    varying_noise = True
    num_nodes: ClassVar[int] = _NODES_PER_FUNCTION**2

    @property
    def raises_bound(self) -> bool:
        """Of the mean's function W is no stand-in, and of the log-noise it is constant, so that steps change the mean alone."""
        return True

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be finite; returned as floats."""
        check_targets(targets, "HeteroscedasticGaussianLikelihood")
        return as_floats(targets)

    def typical_latents(self, targets: Tensor) -> Tensor:
        """Mean and logarithm of the variance ``(2,)``."""
        variance = targets.var(correction=0).clamp_min(torch.finfo(targets.dtype).tiny)
        return torch.stack([targets.mean(), variance.log()])

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log N(y; f_1, exp(f_2))``."""
        precision, _ = continued_exp(-f[..., 1], _MAX_LOG_PRECISION)
        squared = (targets.to(f.dtype) - f[..., 0]).square()
        return -0.5 * (squared * precision + f[..., 1] + math.log(2.0 * math.pi))

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and Fisher information."""
        precision, slope = continued_exp(-f[..., 1], _MAX_LOG_PRECISION)
        residual = targets.to(f.dtype) - f[..., 0]
        gradient = torch.stack([residual * precision, 0.5 * (residual.square() * slope - 1.0)], -1)
        return gradient, torch.diag_embed(torch.stack([slope, torch.full_like(slope, 0.5)], -1))

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[log N(y; f_1, exp(f_2))]`` for each row ``(N,)``, in closed form; of the nodes only the covariance counts."""
        precision, _, _, squared = self._expected(mean, offsets, weights, targets)
        return -0.5 * (squared * precision + mean[..., 1] + math.log(2.0 * math.pi))

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, 2)`` and Fisher information ``(N, 2, 2)``, in closed form."""
        precision, slope, residual, squared = self._expected(mean, offsets, weights, targets)
        gradient = torch.stack([residual * precision, 0.5 * (squared * slope - 1.0)], -1)
        return gradient, torch.diag_embed(torch.stack([slope, torch.full_like(slope, 0.5)], -1))

    @staticmethod
    def _expected(
        mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Expected precision and its derivative, residual and its square under the density tilted by the precision.

        ``E[h(f_1) exp(-f_2)] = E[exp(-f_2)] E[h(f_1 - c)]`` for covariance c of the two.
        """
        covariance = node_covariance(offsets, weights)
        precision, slope = continued_exp(-mean[..., 1] + 0.5 * covariance[:, 1, 1], _MAX_LOG_PRECISION)
        residual = targets.to(mean.dtype) - mean[..., 0] + covariance[:, 0, 1]
        return precision, slope, residual, residual.square() + covariance[:, 0, 0]

    def standard_nodes(self, like: Tensor, seed: int = 0, skip: int = 0) -> tuple[Tensor, Tensor]:
        """The 49 nodes of a product of two Gauss-Hermite rules, the same for every row; neither seed nor skip is used."""
        nodes, weights = gauss_hermite(_NODES_PER_FUNCTION, like=like)
        pairs = torch.cartesian_prod(nodes, nodes)
        return pairs.unsqueeze(1).expand(-1, like.shape[0], -1), torch.cartesian_prod(weights, weights).prod(-1)

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Normal:
        """Conditional distribution at latent values ``(..., N, 2)``."""
        return Normal(function_samples[..., 0], self._noise(function_samples[..., 1]).sqrt(), validate_args=False)

    @staticmethod
    def _noise(log_noise: Tensor) -> Tensor:
        return log_noise.clamp(-_MAX_LOG_PRECISION, _MAX_LOG_PRECISION).exp()

    def predictive(self, mean: Tensor, covariance: Tensor) -> QuadratureMixture:
        """Mixture of Gaussians over 64 Gauss-Hermite nodes for the log-noise; in closed form for the mean given it."""
        nodes, weights = gauss_hermite(_PREDICTIVE_NODES, like=mean)
        spread = covariance[..., 1, 1].clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
        slope = covariance[..., 0, 1] / spread  # of the first function per standard deviation of the second
        rest = (covariance[..., 0, 0] - slope.square()).clamp_min(0.0)
        noise = self._noise(mean[..., 1:] + spread.unsqueeze(-1) * nodes)
        location = mean[..., :1] + slope.unsqueeze(-1) * nodes
        return QuadratureMixture(weights, Normal(location, (rest.unsqueeze(-1) + noise).sqrt(), validate_args=False))

"""Real-valued observations with outliers."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor
from torch.distributions import Laplace

from itergp.likelihoods.distributions import StudentT
from itergp.likelihoods.mixtures import NormalScaleMixture
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.targets import as_floats, check_targets

_SMALLEST = 1e-3
_NODES = 200


class _RealLikelihood(SingleLatentLikelihood):
    @property
    def raises_bound(self) -> bool:
        """Covariances are conditioned with a constant, so that steps change the mean alone, or with the expected Hessian."""
        return True

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be finite; returned as floats."""
        check_targets(targets, type(self).__name__)
        return as_floats(targets)

    @abstractmethod
    def _noise_nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights ``(S,)`` and variances ``(S,)`` of the Gaussians that the noise is a mixture of; its own variance."""

    def predictive(self, mean: Tensor, covariance: Tensor) -> NormalScaleMixture:
        """Mixture of Gaussians over the variance of the noise, in closed form over the latent value."""
        weights, noise, total = (value.to(mean.dtype) for value in self._noise_nodes())
        return NormalScaleMixture(weights, noise, mean[..., 0], covariance[..., 0, 0], total)

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """``log E[p(y_n | f_n)]`` for each row ``(N,)``, by the same mixture."""
        return self.predictive(mean, covariance).log_prob(targets)


class StudentTLikelihood(_RealLikelihood):
    """``y = f + noise`` with Student-t noise: real targets of which some may be far off.

    Not log-concave, since the log-density flattens away from f. As a mixture of Gaussians over the precision of the noise it
    is majorised by that of complete data, ``(dof + 1) / (dof noise + (y - f)^2)`` (Lange, Little & Taylor 1989), whose steps
    pass over targets that are far off; covariances are conditioned with the Fisher information. Parameters and constraints
    are those of GPyTorch's likelihood of the same name.

    Args:
        noise: Initial squared scale of the noise in response units; the variance is ``deg_free / (deg_free - 2)`` times it.
        deg_free: Initial degrees of freedom; default 7.
        noise_prior: Prior over the squared scale.
        noise_constraint: Constraint on it; default positive.
        deg_free_prior: Prior over the degrees of freedom.
        deg_free_constraint: Constraint on them; default above 2.
    """

    log_concave = False
    curvature = "complete-data"
    majorises = True
    bounded_curvature = True  # that of covariances is a constant
    noise = ConstrainedParameter()
    """Squared scale of the noise ``(1,)``."""
    deg_free = ConstrainedParameter()
    """Degrees of freedom ``(1,)``."""

    def __init__(
        self,
        noise: float | None = None,
        deg_free: float = 7.0,
        noise_prior: Prior | None = None,
        noise_constraint: Interval | None = None,
        deg_free_prior: Prior | None = None,
        deg_free_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        type(self).noise.register(self, noise_constraint or Positive(), noise_prior, noise)
        type(self).deg_free.register(self, deg_free_constraint or GreaterThan(2.0), deg_free_prior, deg_free)

    @property
    def latent_width(self) -> float:  # type: ignore[override]
        """A third of the distance of the density's poles."""
        return float((self.deg_free.detach() * self.noise.detach()).sqrt()) / 3.0

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        dof, noise = self.deg_free.to(latent.dtype), self.noise.to(latent.dtype)
        constant = torch.lgamma(0.5 * (dof + 1.0)) - torch.lgamma(0.5 * dof) - 0.5 * (math.pi * dof * noise).log()
        return constant - 0.5 * (dof + 1.0) * torch.log1p((y - latent).square() / (dof * noise))

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        dof, noise, residual = self.deg_free.to(latent.dtype), self.noise.to(latent.dtype), y - latent
        precision = (dof + 1.0) / (dof * noise + residual.square())  # that of the noise given the residual, on average
        return precision * residual, precision

    def expected_curvature(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Fisher information ``(N, 1, 1)``: the same wherever f is."""
        dof, noise = self.deg_free.to(mean.dtype), self.noise.to(mean.dtype)
        return ((dof + 1.0) / ((dof + 3.0) * noise)).expand(mean.shape)[..., None]

    def _conditional(self, latent: Tensor, *second: Tensor) -> StudentT:
        dof, noise = self.deg_free.to(latent.dtype), self.noise.to(latent.dtype)
        return StudentT(dof, latent, noise.sqrt(), validate_args=False)

    def _noise_nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        half, noise = 0.5 * self.deg_free.double(), self.noise.double()  # precisions are Gamma(half, half) / noise
        reach = float(36.0 / half.detach() + 6.0 / half.detach().sqrt())
        upper = math.log1p(reach) + min(reach, 3.0)
        log_precision = torch.linspace(-reach, upper, _NODES, dtype=torch.float64, device=half.device)
        log_weights = half * (log_precision - log_precision.exp())
        variance = noise * half / (half - 1.0).clamp_min(0.0)  # infinite up to two degrees of freedom
        return torch.softmax(log_weights, 0), noise * torch.exp(-log_precision), variance


class LaplaceLikelihood(_RealLikelihood):
    """``y = f + noise`` with two-sided exponential noise: the latent function is a median.

    Log-concave with a kink, where there is no Hessian; the curvature is the Fisher information. Prefer the variational
    approximation: expectations over a Gaussian are smooth, in closed form, and their curvature is the exact one, while the
    mode sits on the kinks of many rows and is found slowly. Parameter and constraint are those of GPyTorch's likelihood of
    the same name.

    Args:
        noise: Initial squared scale of the noise (response units squared; half its variance).
        noise_prior: Prior over the squared scale.
        noise_constraint: Constraint on it; default positive.
    """

    curvature = "fisher"
    smooth = False
    bounded_curvature = True  # and so is the gradient: no mean has to fall far for a wide marginal
    noise = ConstrainedParameter()
    """Squared scale of the noise ``(1,)``."""

    def __init__(
        self,
        noise: float | None = None,
        noise_prior: Prior | None = None,
        noise_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        type(self).noise.register(self, noise_constraint or Positive(), noise_prior, noise)

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        scale = self.noise.to(latent.dtype).sqrt()
        return -(y - latent).abs() / scale - (2.0 * scale).log()

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        noise = self.noise.to(latent.dtype)
        return torch.sign(y - latent) / noise.sqrt(), noise.reciprocal()

    def _conditional(self, latent: Tensor, *second: Tensor) -> Laplace:
        return Laplace(latent, self.noise.to(latent.dtype).sqrt(), validate_args=False)

    def _noise_nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        variance = 2.0 * self.noise.double()  # variances are exponential with this mean
        log_ratio = torch.linspace(-40.0, 4.0, _NODES, dtype=torch.float64, device=variance.device)
        return torch.softmax(log_ratio - log_ratio.exp(), 0), variance * log_ratio.exp(), variance

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[log p(y_n | f_n)]`` in closed form; of the nodes only the variance counts."""
        scale = self.noise.to(mean.dtype).sqrt()
        residual, spread, z = self._standardised(mean, offsets, weights, targets)
        distance = spread * math.sqrt(2.0 / math.pi) * torch.exp(-0.5 * z.square()) + residual * _erf(z)
        return -distance / scale - (2.0 * scale).log()

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient and negative Hessian of the expectation, in closed form."""
        scale = self.noise.to(mean.dtype).sqrt()
        _, spread, z = self._standardised(mean, offsets, weights, targets)
        curvature = math.sqrt(2.0 / math.pi) * torch.exp(-0.5 * z.square()) / (spread * scale)
        return (_erf(z) / scale).unsqueeze(-1), curvature[..., None, None]

    def _standardised(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals, standard deviations (at least a thousandth of the noise's scale), and their ratio ``(N,)``."""
        offsets, weights = offsets.to(mean.dtype), weights.to(mean.dtype)
        variance = (weights[:, None] * offsets[..., 0].square()).sum(0)
        spread = variance.clamp_min(_SMALLEST**2 * self.noise.detach().to(mean.dtype)).sqrt()
        residual = targets.to(mean.dtype) - mean[:, 0]
        return residual, spread, (residual / spread).clamp(-1e3, 1e3)


def _erf(z: Tensor) -> Tensor:
    return torch.erf(math.sqrt(0.5) * z)

"""Counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Poisson

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, require_integers
from itergp.likelihoods.predictive import PoissonMixture
from itergp.likelihoods.quadrature import gauss_hermite

# exp(f) overflows float32 above 88: beyond this latent value the log-density is continued linearly, which keeps it
# concave and differentiable once; no posterior lives there.
_MAX_LOG_RATE = 80.0
_PREDICTIVE_NODES = 64


class PoissonLikelihood(Likelihood):
    """Counts 0, 1, 2, ... with rate ``exp(f)``; log-concave, closed-form Hessian.

    GPyTorch's likelihood of the same name uses ``softplus(f)`` instead; it is accepted too.
    """

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Counts must be non-negative whole numbers; returned as floats."""
        counts = require_integers(targets, "PoissonLikelihood", "counts 0, 1, 2, ...")
        if counts.numel() > 0 and int(counts.min()) < 0:
            raise InputError(
                f"`train_targets` must be counts 0, 1, 2, ... for PoissonLikelihood. Got {int(counts.min())}. "
                "Check the column, or model signed values with another likelihood."
            )
        return counts.to(targets.dtype if targets.is_floating_point() else torch.get_default_dtype())

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``y f - exp(f) - log y!``."""
        latent = f.squeeze(-1)
        capped = latent.clamp_max(_MAX_LOG_RATE)
        rate = capped.exp() * (1.0 + latent - capped)
        counts = targets.to(f.dtype)
        return counts * latent - rate - torch.lgamma(counts + 1.0)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``y - exp(f)`` and negative Hessian ``exp(f)``."""
        rate = f.clamp_max(_MAX_LOG_RATE).exp()
        return targets.to(f.dtype).unsqueeze(-1) - rate, rate.unsqueeze(-1)

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Poisson:
        """Conditional distribution at latent values ``(..., N)``."""
        return Poisson(function_samples.clamp_max(_MAX_LOG_RATE).exp(), validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> PoissonMixture:
        """Mixture of Poisson distributions over 64 Gauss-Hermite nodes, with log-density, moments and quantiles."""
        nodes, weights = gauss_hermite(_PREDICTIVE_NODES, like=mean)
        scale = covariance[..., 0].clamp_min(0.0).sqrt()
        rates = (mean + scale * nodes).clamp_max(_MAX_LOG_RATE).exp()
        return PoissonMixture(weights, rates, (mean.squeeze(-1), scale.squeeze(-1)))

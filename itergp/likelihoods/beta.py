"""Shares, rates and proportions strictly between 0 and 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor

from itergp.likelihoods.base import Observed
from itergp.likelihoods.distributions import Beta
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.targets import as_floats, check_targets, require_inside


class BetaLikelihood(SingleLatentLikelihood):
    """Shares with mean ``m = 1 / (1 + exp(-f))`` and variance ``m (1 - m) / (1 + precision)``.

    Not log-concave in general; the curvature is the Fisher information. GPyTorch's likelihood of the same name adds 1 to both
    concentrations, and is accepted as it is. Source: Ferrari & Cribari-Neto 2004, Beta Regression for Modelling Rates and
    Proportions.

    Args:
        precision: Initial precision, the sum of the two concentrations; default softplus(0), about 0.69.
        precision_prior: Prior over the precision.
        precision_constraint: Constraint on the precision; default positive.
    """

    observes: ClassVar[Observed] = "share"
    log_concave = False
    curvature = "fisher"
    precision = ConstrainedParameter()
    """Precision ``(1,)``: sum of the two concentrations."""

    def __init__(
        self,
        precision: float | None = None,
        precision_prior: Prior | None = None,
        precision_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        type(self).precision.register(self, precision_constraint or Positive(), precision_prior, precision)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Targets must be strictly between 0 and 1; returned as floats."""
        check_targets(targets, "BetaLikelihood")
        inside = (targets > 0) & (targets < 1)
        remedy = "Move exact zeros and ones inside, or use BinomialLikelihood for counts of successes."
        require_inside(targets, inside, "BetaLikelihood", "strictly between 0 and 1", remedy)
        return as_floats(targets)

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        precision, log_sigmoid = self.precision.to(latent.dtype), torch.nn.functional.logsigmoid
        first, other = precision * torch.sigmoid(latent), precision * torch.sigmoid(-latent)
        # lgamma(a) = lgamma(1 + a) - log(a), and log(a) is accurate where a itself underflows.
        log_both = log_sigmoid(latent) + log_sigmoid(-latent) + 2.0 * precision.log()
        constant = torch.lgamma(precision) - torch.lgamma(1.0 + first) - torch.lgamma(1.0 + other) + log_both
        return constant + (first - 1.0) * y.log() + (other - 1.0) * torch.log1p(-y)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        precision, mean, rest = self.precision.to(latent.dtype), torch.sigmoid(latent), torch.sigmoid(-latent)
        first, other, slope = 1.0 + precision * mean, 1.0 + precision * rest, precision * mean * rest
        observed = y.log() - torch.log1p(-y) - torch.digamma(first) + torch.digamma(other)
        trigamma = torch.polygamma(1, first) + torch.polygamma(1, other)
        return slope * observed + rest - mean, slope.square() * trigamma + rest.square() + mean.square()

    def _conditional(self, latent: Tensor, *second: Tensor) -> Beta:
        precision, tiny = self.precision.to(latent.dtype), 1e-6
        first, other = precision * torch.sigmoid(latent), precision * torch.sigmoid(-latent)
        return Beta(first.clamp_min(tiny), other.clamp_min(tiny), validate_args=False)

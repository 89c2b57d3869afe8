"""Counts with a Poisson distribution."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods.base import Observed
from itergp.likelihoods.distributions import Poisson
from itergp.likelihoods.mixtures import PoissonMixture, QuadratureMixture
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.special import MAX_EXPONENT, continued_exp
from itergp.likelihoods.targets import as_floats, check_columns, require_counts, require_inside

Link = Literal["log", "softplus"]


class CountLikelihood(SingleLatentLikelihood):
    """Base of the likelihoods of counts with an exposure: checks of targets, keyword of ``predictive``."""

    observes: ClassVar[Observed] = "count"
    counts: ClassVar[bool] = True
    second_column: ClassVar[float | None] = 1.0
    predictive_options: ClassVar[tuple[str, ...]] = ("exposure",)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Counts must be non-negative whole numbers, exposures positive; returned as floats."""
        name = type(self).__name__
        check_columns(targets, name, "exposure")
        require_counts(targets if targets.dim() == 1 else targets[:, 0], name)
        if targets.dim() == 2:
            exposure = targets[:, 1]
            remedy = "Rows without exposure say nothing: drop them."
            require_inside(exposure, exposure > 0, name, "counts with a positive exposure in the second column", remedy)
        return as_floats(targets)

    def predictive(
        self, mean: Tensor, covariance: Tensor, *, exposure: float | Tensor | None = None
    ) -> QuadratureMixture:
        """Mixture over quadrature nodes, with log-density, distribution function, moments and quantiles.

        Args:
            mean: Latent means ``(M, 1)``.
            covariance: Latent variances ``(M, 1, 1)``.
            exposure: Exposure of the new rows, a number or ``(M,)``; default 1.
        """
        return self._integrate(mean, covariance, self._second(mean[..., 0], exposure))


class PoissonLikelihood(CountLikelihood):
    """Counts 0, 1, 2, ... with rate ``exposure * exp(f)`` or ``exposure * softplus(f)``; log-concave, closed-form Hessian.

    Targets are counts ``(N,)``, or ``(N, 2)`` with the exposure of each row (time, area, population; positive) in the second
    column. An offset of the linear predictor is the logarithm of an exposure. GPyTorch's likelihood of the same name is that
    with the softplus.

    Args:
        link: ``"log"``, or ``"softplus"``, with which effects add up where rates are large.

    Raises:
        InputError: If the link is none of these.

    Examples:
        >>> likelihood = PoissonLikelihood()
        >>> y = likelihood.validate_targets(torch.tensor([[3.0, 2.0]]))  # three events in two hours
        >>> g, W = likelihood.derivatives(torch.zeros(1, 1), y)
        >>> float(g), float(W)
        (1.0, 2.0)
    """

    def __init__(self, link: Link = "log") -> None:
        super().__init__()
        if link not in get_args(Link):
            raise InputError(f"`link` must be 'log' or 'softplus'. Got {link!r}. Choose one of these.")
        self.link = link

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        (exposure,) = second
        if self.link == "log":
            rate, log_rate = continued_exp(latent)[0], latent
        else:
            rate, log_rate = _softplus(latent)
        return y * (log_rate + exposure.log()) - exposure * rate - torch.lgamma(y + 1.0)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        (exposure,) = second
        if self.link == "log":
            rate = exposure * continued_exp(latent)[1]
            return y - rate, rate
        slope = torch.sigmoid(latent)
        rate = torch.nn.functional.softplus(latent)
        relative = torch.where(latent < -20.0, 1.0, slope / rate.clamp_min(1e-30))  # d log(rate) / df
        curvature = y * relative * (relative - (1.0 - slope)) + exposure * slope * (1.0 - slope)
        return y * relative - exposure * slope, curvature.clamp_min(0.0)

    def _exponential(self, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor] | None:
        return (y, torch.ones_like(y)) if self.link == "log" else None

    def _conditional(self, latent: Tensor, *second: Tensor) -> Poisson:
        (exposure,) = second
        rate = latent.clamp_max(MAX_EXPONENT).exp() if self.link == "log" else torch.nn.functional.softplus(latent)
        return Poisson(exposure * rate, validate_args=False)

    def _integrate(self, mean: Tensor, covariance: Tensor, *second: Tensor) -> PoissonMixture:
        latent, weights = self._nodes(mean, covariance, *second)
        rates = self._conditional(latent, *(column.unsqueeze(-1) for column in second)).rate
        scale = covariance[..., 0, 0].clamp_min(0.0).sqrt()
        log_rate = (mean.squeeze(-1) + second[0].log(), scale) if self.link == "log" else None
        return PoissonMixture(weights, rates, log_rate)


def _softplus(latent: Tensor) -> tuple[Tensor, Tensor]:
    rate = torch.nn.functional.softplus(latent)
    return rate, torch.where(latent < -20.0, latent, rate.clamp_min(1e-30).log())

"""Counts that are more dispersed than a Poisson distribution, or have too many zeros."""

from __future__ import annotations

import math

import torch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.priors import Prior
from torch import Tensor

from itergp.likelihoods.distributions import NegativeBinomial, ZeroInflatedPoisson
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.poisson import CountLikelihood
from itergp.likelihoods.special import MAX_EXPONENT, continued_exp


class NegativeBinomialLikelihood(CountLikelihood):
    """Counts with mean ``mu = exposure * exp(f)`` and variance ``mu + dispersion mu^2``; log-concave, closed-form Hessian.

    The form known as NB2. Dispersion near 0 is a Poisson distribution; ``1 / dispersion`` is the shape (or size) of other
    software. Targets are counts ``(N,)``, or ``(N, 2)`` with the exposure of each row in the second column. GPyTorch's
    likelihood of the same name has another link and parameter, and is accepted as it is.

    Args:
        dispersion: Initial dispersion; default softplus(0), about 0.69.
        dispersion_prior: Prior over the dispersion.
        dispersion_constraint: Constraint on the dispersion; default above 1e-6.
    """

    dispersion = ConstrainedParameter()
    """Dispersion ``(1,)``: variance beyond that of a Poisson distribution, per squared mean."""

    def __init__(
        self,
        dispersion: float | None = None,
        dispersion_prior: Prior | None = None,
        dispersion_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        constraint = dispersion_constraint or GreaterThan(1e-6)
        type(self).dispersion.register(self, constraint, dispersion_prior, dispersion)

    def _log_odds(self, latent: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of one more count, and the shape ``1 / dispersion``."""
        dispersion = self.dispersion.to(latent.dtype)
        return latent + exposure.log() + dispersion.log(), dispersion.reciprocal()

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        odds, shape = self._log_odds(latent, *second)
        wide, counts = self.dispersion.double().reciprocal(), y.double()  # large terms cancel
        constant = torch.lgamma(counts + wide) - torch.lgamma(wide) - torch.lgamma(counts + 1.0)
        log_sigmoid = torch.nn.functional.logsigmoid
        return y * log_sigmoid(odds) + shape * log_sigmoid(-odds) + constant.to(latent.dtype)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        odds, shape = self._log_odds(latent, *second)
        more, stop = torch.sigmoid(odds), torch.sigmoid(-odds)
        return y * stop - shape * more, (y + shape) * more * stop

    def _conditional(self, latent: Tensor, *second: Tensor) -> NegativeBinomial:
        odds, shape = self._log_odds(latent.clamp_max(MAX_EXPONENT), *second)
        return NegativeBinomial(shape.expand_as(odds), logits=odds, validate_args=False)


class ZeroInflatedPoissonLikelihood(CountLikelihood):
    """Zero with probability ``inflation``, otherwise a Poisson count of rate ``exposure * exp(f)``.

    Not log-concave: a zero may be structural, whatever the rate. The curvature is the complete-data information given the
    count, that is, the rate times the probability that the count is not a structural zero: an upper bound of the negative
    Hessian (Louis 1982), exact for counts above 0. It needs half the Newton steps of the Fisher information, which expects
    zeros where there are none. Targets are counts ``(N,)``, or ``(N, 2)`` with the exposure of each row in the second
    column. ``mean`` of the predictive distribution includes the structural zeros.

    Args:
        inflation: Initial probability of a structural zero; default 0.5, for which ``itergp.fit`` puts the share of zeros that
            a Poisson distribution of the same mean does not explain.
        inflation_prior: Prior over it.
        inflation_constraint: Constraint on it; default between 1e-6 and 0.9999.
    """

    log_concave = False
    curvature = "complete-data"
    inflation = ConstrainedParameter()
    """Probability of a structural zero ``(1,)``."""

    def __init__(
        self,
        inflation: float | None = None,
        inflation_prior: Prior | None = None,
        inflation_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        type(self).inflation.register(self, inflation_constraint or Interval(1e-6, 0.9999), inflation_prior, inflation)

    @property
    def latent_width(self) -> float:  # type: ignore[override]
        """A third of how far from real rates ``p + (1 - p) exp(-exp(f))`` vanishes."""
        return math.atan2(math.pi, float(torch.logit(1.0 - self.inflation.detach().double()))) / 3.0

    def initialise(self, targets: Tensor) -> list[str]:
        """Inflation from the share of zeros beyond that of a Poisson distribution, if still at its default."""
        if bool(self.raw_inflation.any()) or not self.raw_inflation.requires_grad:
            return []
        counts = targets if targets.dim() == 1 else targets[:, 0]
        excess = (counts == 0).double().mean() - torch.exp(-counts.double().mean())
        lower, upper = self.raw_inflation_constraint.lower_bound, self.raw_inflation_constraint.upper_bound
        self.inflation = excess.clamp(0.01, 0.9).to(lower).clamp(lower * 1.01, upper * 0.99)
        return ["likelihood.inflation"]

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        inflation, rate = self.inflation.to(latent.dtype), second[0] * continued_exp(latent)[0]
        log_rate = latent + second[0].log()
        counted = torch.log1p(-inflation) + y * log_rate - rate - torch.lgamma(y + 1.0)
        # Not logaddexp, whose second derivative by torch is NaN far out.
        zero = inflation.log() + torch.nn.functional.softplus(counted - inflation.log())
        return torch.where(y == 0, zero, counted)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        inflation, rate = self.inflation.to(latent.dtype), second[0] * continued_exp(latent)[1]
        # Probability that a zero is a count and not structural.
        genuine = torch.sigmoid(torch.log1p(-inflation) - inflation.log() - rate)
        gradient = torch.where(y == 0, -rate * genuine, y - rate)
        return gradient, torch.where(y == 0, rate * genuine, rate)

    def _exponential(self, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor] | None:
        return y, torch.where(y == 0, torch.nan, 1.0)  # counts above 0 are not structural

    def _conditional(self, latent: Tensor, *second: Tensor) -> ZeroInflatedPoisson:
        rate = second[0] * latent.clamp_max(MAX_EXPONENT).exp()
        return ZeroInflatedPoisson(self.inflation.to(latent.dtype), rate, validate_args=False)

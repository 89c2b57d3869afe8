"""Conditional distributions of observations that ``torch.distributions`` lacks, or has without a distribution function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from itergp.likelihoods.special import betainc, interval_slopes, log_mass


class Poisson(td.Poisson):
    """Counts with a rate; ``cdf`` in float64."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``."""
        counts = value.double().floor()
        below = torch.special.gammaincc(counts.clamp_min(0.0) + 1.0, self.rate.double())
        return torch.where(counts < 0.0, 0.0, below)


class ZeroInflatedPoisson(td.Distribution):
    """Zero with probability ``inflation``, otherwise a Poisson count.

    Args:
        inflation: Probability of a structural zero.
        rate: Of the Poisson counts, broadcast with ``inflation``.
    """

    arg_constraints = {"inflation": constraints.unit_interval, "rate": constraints.nonnegative}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, inflation: Tensor, rate: Tensor, validate_args: bool | None = None) -> None:
        self.inflation, self.rate = torch.broadcast_tensors(inflation, rate)
        super().__init__(self.rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """``(1 - inflation) rate``."""
        return (1.0 - self.inflation) * self.rate

    @property
    def variance(self) -> Tensor:
        """``mean (1 + inflation rate)``."""
        return self.mean * (1.0 + self.inflation * self.rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts."""
        counted = torch.log1p(-self.inflation) + Poisson(self.rate, validate_args=False).log_prob(value)
        return torch.where(value == 0, torch.logaddexp(self.inflation.log(), counted), counted)

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, float64."""
        inflation = self.inflation.double()
        below = inflation + (1.0 - inflation) * Poisson(self.rate, validate_args=False).cdf(value)
        return torch.where(value < 0, 0.0, below)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Counts of shape ``sample_shape + batch_shape``."""
        shape = self._extended_shape(sample_shape)
        counts = torch.poisson(self.rate.expand(shape))
        return torch.where(torch.rand_like(counts) < self.inflation, 0.0, counts)


class NegativeBinomial(td.NegativeBinomial):
    """Counts; ``cdf`` in float64."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``."""
        counts = value.double().floor()
        below = betainc(self.total_count, counts.clamp_min(0.0) + 1.0, torch.sigmoid(-self.logits.double()))
        return torch.where(counts < 0.0, 0.0, below)


class Binomial(td.Binomial):
    """Successes among trials; ``cdf`` in float64."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``."""
        counts, trials = torch.broadcast_tensors(value.double().floor(), self.total_count.double())
        inside = counts.clamp_min(0.0)
        below = betainc((trials - inside).clamp_min(0.5), inside + 1.0, torch.sigmoid(-self.logits.double()))
        return torch.where(counts < 0.0, 0.0, torch.where(counts >= trials, 1.0, below))


class StudentT(td.StudentT):
    """Heavy-tailed real values, with ``cdf``."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``."""
        df, z = self.df.double(), ((value - self.loc) / self.scale).double()
        outside = 0.5 * betainc(0.5 * df, torch.full_like(df, 0.5), df / (df + z.square()))
        return torch.where(z < 0.0, outside, 1.0 - outside).to(self.loc.dtype)


class Beta(td.Beta):
    """Shares between 0 and 1, with ``cdf``."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``."""
        first, second = self.concentration1, self.concentration0
        return betainc(first, second, value.clamp(0.0, 1.0)).to(first.dtype)


class Gamma(td.Gamma):
    """Positive values; ``cdf`` is 0 below 0."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``."""
        return torch.special.gammainc(self.concentration, self.rate * value.clamp_min(0.0))


class Weibull(td.Distribution):
    """Positive values with ``P(y > t) = exp(-(t / scale)^shape)``.

    Args:
        log_scale: Logarithm of the scale.
        shape: Positive, broadcast with ``log_scale``; 1 gives the exponential distribution.
    """

    arg_constraints = {"log_scale": constraints.real, "shape": constraints.positive}  # noqa: RUF012
    support = constraints.positive

    def __init__(self, log_scale: Tensor, shape: Tensor, validate_args: bool | None = None) -> None:
        self.log_scale, self.shape = torch.broadcast_tensors(log_scale, shape)
        super().__init__(self.log_scale.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """``scale Gamma(1 + 1 / shape)``."""
        return torch.exp(self.log_scale + torch.lgamma(1.0 + 1.0 / self.shape))

    @property
    def variance(self) -> Tensor:
        """``scale^2 (Gamma(1 + 2 / shape) - Gamma(1 + 1 / shape)^2)``."""
        first, second = torch.lgamma(1.0 + 1.0 / self.shape), torch.lgamma(1.0 + 2.0 / self.shape)
        return torch.exp(2.0 * self.log_scale) * (second.exp() - (2.0 * first).exp())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density."""
        log_value = value.log()
        log_hazard = self.shape * (log_value - self.log_scale)
        return self.shape.log() - log_value + log_hazard - log_hazard.exp()

    def log_survival(self, value: Tensor) -> Tensor:
        """``log P(y > value)``."""
        return -torch.exp(self.shape * (value.log() - self.log_scale))

    def log_interval(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``log P(lower < y <= upper)``, accurate for short intervals; lower bounds may be 0."""
        low, open_end = lower.clamp_min(torch.finfo(lower.dtype).tiny), lower > 0
        share = log_mass((self.shape * torch.log1p((upper - low) / low)).log())
        before = self.shape * (upper.log() - self.log_scale) + torch.where(open_end, share, 0.0)
        return torch.where(open_end, self.log_survival(low), 0.0) + log_mass(before)

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, 0 below 0."""
        tiny = torch.finfo(self.log_scale.dtype).tiny
        return -torch.expm1(-torch.exp(self.shape * (value.clamp_min(tiny).log() - self.log_scale))) * (value > 0)

    def icdf(self, level: Tensor) -> Tensor:
        """Quantile."""
        return torch.exp(self.log_scale + torch.log(-torch.log1p(-level)) / self.shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Values of shape ``sample_shape + batch_shape``, differentiable."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.log_scale.dtype, device=self.log_scale.device)
        return self.icdf(uniform.clamp_max(1.0 - math.ulp(0.5)))


class LogLogistic(td.Distribution):
    """Positive values with ``P(y > t) = 1 / (1 + (t / scale)^shape)``.

    Args:
        log_scale: Logarithm of the scale, which is the median.
        shape: Positive, broadcast with ``log_scale``.
    """

    arg_constraints = {"log_scale": constraints.real, "shape": constraints.positive}  # noqa: RUF012
    support = constraints.positive

    def __init__(self, log_scale: Tensor, shape: Tensor, validate_args: bool | None = None) -> None:
        self.log_scale, self.shape = torch.broadcast_tensors(log_scale, shape)
        super().__init__(self.log_scale.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """``scale / sinc(1 / shape)``, infinite for shapes up to 1."""
        return torch.where(self.shape > 1.0, self.log_scale.exp() / torch.sinc(1.0 / self.shape), torch.inf)

    @property
    def variance(self) -> Tensor:
        """``scale^2 / sinc(2 / shape) - mean^2``, infinite for shapes up to 2."""
        second = torch.exp(2.0 * self.log_scale) / torch.sinc(2.0 / self.shape)
        return torch.where(self.shape > 2.0, second - self.mean.square(), torch.inf)

    def _log_odds(self, value: Tensor) -> Tensor:
        """Of being below ``value``."""
        return self.shape * (value.log() - self.log_scale)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density."""
        odds = self._log_odds(value)
        return self.shape.log() - value.log() + logsigmoid(odds) + logsigmoid(-odds)

    def log_survival(self, value: Tensor) -> Tensor:
        """``log P(y > value)``."""
        return logsigmoid(-self._log_odds(value))

    def log_interval(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``log P(lower < y <= upper)``, accurate for short intervals; lower bounds may be 0."""
        low = lower.clamp_min(torch.finfo(lower.dtype).tiny)
        share = log_mass((self.shape * torch.log1p((upper - low) / low)).log())
        return logsigmoid(self._log_odds(upper)) + torch.where(lower > 0, logsigmoid(-self._log_odds(low)) + share, 0.0)

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, 0 below 0."""
        tiny = torch.finfo(self.log_scale.dtype).tiny
        return torch.sigmoid(self._log_odds(value.clamp_min(tiny))) * (value > 0)

    def icdf(self, level: Tensor) -> Tensor:
        """Quantile."""
        return torch.exp(self.log_scale + torch.logit(level) / self.shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Values of shape ``sample_shape + batch_shape``, differentiable."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.log_scale.dtype, device=self.log_scale.device)
        eps = torch.finfo(uniform.dtype).eps
        return self.icdf(uniform.clamp(eps, 1.0 - eps))


class LogNormal(td.LogNormal):
    """Positive values whose logarithm is normal, with the tails that censored values need."""

    def _standardised(self, value: Tensor) -> Tensor:
        return (value.log() - self.loc) / self.scale

    def log_survival(self, value: Tensor) -> Tensor:
        """``log P(y > value)``."""
        return torch.special.log_ndtr(-self._standardised(value))

    def log_interval(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``log P(lower < y <= upper)``, accurate for short intervals; lower bounds may be 0."""
        tiny, open_end = torch.finfo(self.loc.dtype).tiny, lower > 0
        low = torch.where(open_end, lower, 0.5 * upper).clamp_min(tiny)
        within, *_ = interval_slopes(self._standardised(low), torch.log1p((upper - low) / low) / self.scale)
        return torch.where(open_end, within.to(self.loc), torch.special.log_ndtr(self._standardised(upper)))

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, 0 below 0."""
        tiny = torch.finfo(self.loc.dtype).tiny
        return torch.special.ndtr(self._standardised(value.clamp_min(tiny))) * (value > 0)

"""Mixtures of conditional distributions over quadrature nodes, with quantiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, Poisson, constraints

from itergp.errors import InputError
from itergp.likelihoods import distributions
from itergp.likelihoods.quadrature import gauss_hermite

_DRAWS = 256
_CHUNK = 2**20  # values evaluated at once
_MAX_STEPS = 60


def check_level(level: float) -> None:
    """Quantile levels are inside the unit interval."""
    if not 0.0 < level < 1.0:
        raise InputError(f"`level` must be between 0 and 1. Got {level}. Pass 0.9 for the 90 % quantile.")


class QuadratureMixture(MixtureSameFamily):
    """Mixture of the conditional distributions at quadrature nodes; discrete or continuous.

    Args:
        weights: Node weights ``(S,)``.
        components: Conditional distributions with batch shape ``(M, S)``.
    """

    def __init__(self, weights: Tensor, components: Distribution) -> None:
        # Given as probabilities, torch would lift the smallest weights to the resolution of the dtype.
        log_weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
        mixing = Categorical(logits=log_weights.expand(components.batch_shape), validate_args=False)
        super().__init__(mixing, components, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of observations of any dtype, broadcast against ``(M,)``.

        Raises:
            InputError: If they are not one number per row, for example targets with an exposure.
        """
        value = torch.as_tensor(value).to(self.mixture_distribution.probs)
        if value.dim() and value.shape[-1] != self.batch_shape[-1] and 1 not in (value.shape[-1], self.batch_shape[-1]):
            raise InputError(
                f"`value` must be one observation per row, shape (..., {self.batch_shape[-1]}). Got "
                f"{tuple(value.shape)}. Say what else belongs to the rows in predict, such as predict(x, "
                "exposure=...), or use likelihood.log_marginal(targets, model(x)), which takes targets as the model "
                "does."
            )
        return super().log_prob(value)

    def quantile(self, level: float) -> Tensor:
        """Quantile of the observations at ``level`` ``(M,)``.

        From the distribution function, by Newton's method within a bracket; for components without one, from 256
        fixed-seed samples at every node.
        """
        check_level(level)
        try:
            self.cdf(self.mean)
        except NotImplementedError:
            return self._sampled_quantile(level)
        with torch.no_grad():
            return self._root(level)

    def _root(self, level: float) -> Tensor:
        value, slope, centre, width = self._coordinate()
        low, high = centre - width, centre + width
        for _ in range(_MAX_STEPS):
            low = torch.where(self.cdf(value(low)) > level, low - 2.0 * (high - low), low)
            short = self.cdf(value(high)) < level
            high = torch.where(short, high + 2.0 * (high - low), high)
            if not bool((short | (self.cdf(value(low)) > level)).any()):
                break
        point = 0.5 * (low + high)
        tolerance = torch.finfo(point.dtype).eps ** 0.75  # of the last step; Newton leaves far less
        for step in range(_MAX_STEPS):
            miss = self.cdf(value(point)) - level
            low, high = torch.where(miss < 0.0, point, low), torch.where(miss < 0.0, high, point)
            newton = point - miss / (self.log_prob(value(point)).exp() * slope(point))
            useful = (newton > low) & (newton < high) & (step % 3 != 2)
            following = torch.where(useful, newton, 0.5 * (low + high))
            moved, point = (following - point).abs(), following
            if not bool((moved > tolerance * (1.0 + point.abs())).any()):
                break
        return value(point)

    def _coordinate(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor, Tensor]:
        """Where quantiles are sought: a map from the line to the support, its slope, and a first bracket."""
        support, mean = self.component_distribution.support, self.mean
        if support in (constraints.positive, constraints.nonnegative):
            start = mean.log().nan_to_num(0.0, 0.0, 0.0)
            return torch.exp, torch.exp, start, torch.ones_like(start)
        if support is constraints.unit_interval:
            start = torch.logit(mean.clamp(1e-6, 1.0 - 1e-6))
            return torch.sigmoid, lambda u: torch.sigmoid(u) * torch.sigmoid(-u), start, torch.ones_like(start)
        return (lambda u: u), torch.ones_like, mean, self.variance.sqrt()

    def _sampled_quantile(self, level: float) -> Tensor:
        probs = self.mixture_distribution.probs
        quantiles = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for rows in torch.arange(probs.shape[0]).split(max(1, _CHUNK // probs.shape[1] // 16)):
                draws = _select(self.component_distribution, rows.to(probs.device)).sample(torch.Size([_DRAWS]))
                values, order = draws.movedim(1, 0).flatten(1).sort(-1)
                weights = probs[rows].repeat(1, _DRAWS).gather(1, order) / _DRAWS
                reached = (weights.cumsum(-1) < level).sum(-1, keepdim=True).clamp_max(values.shape[1] - 1)
                quantiles.append(values.gather(1, reached).squeeze(-1))
        return torch.cat(quantiles)


def _select(distribution: Distribution, rows: Tensor) -> Distribution:
    """The distribution of some rows of its batch."""
    arguments: Any = type(distribution).arg_constraints
    names = [name for name in arguments if not (name == "logits" and "probs" in arguments)]
    parameters = {name: getattr(distribution, name).expand(distribution.batch_shape)[rows] for name in names}
    return type(distribution)(**parameters, validate_args=False)


class NormalScaleMixture(QuadratureMixture):
    """Gaussian latent value plus noise that is Gaussian with a random variance: Student-t, Laplace.

    Args:
        weights: Weights of the noise variances ``(S,)``.
        noise: Noise variances ``(S,)``.
        mean: Latent means ``(M,)``.
        variance: Latent variances ``(M,)``.
        noise_variance: Expected noise variance, in closed form.
    """

    def __init__(self, weights: Tensor, noise: Tensor, mean: Tensor, variance: Tensor, noise_variance: Tensor) -> None:
        total = variance.clamp_min(0.0).unsqueeze(-1) + noise
        super().__init__(weights, Normal(mean.unsqueeze(-1).expand_as(total), total.sqrt(), validate_args=False))
        self.noise_variance, self.latent_variance = noise_variance, variance

    @property
    def variance(self) -> Tensor:
        """Latent variance plus that of the noise ``(M,)``."""
        return self.latent_variance + self.noise_variance


class CountMixture(QuadratureMixture):
    """Mixture of distributions of counts that have a distribution function in float64."""

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, with ``value`` broadcast against ``(M,)``."""
        probs = self.mixture_distribution.probs
        counts = torch.as_tensor(value, device=probs.device).double().floor()
        return self._cumulative(counts.expand(torch.broadcast_shapes(counts.shape, self.batch_shape))).to(probs)

    def _cumulative(self, counts: Tensor) -> Tensor:
        below = self.component_distribution.cdf(counts.unsqueeze(-1))
        return (self.mixture_distribution.probs.double() * below).sum(-1)

    def quantile(self, level: float) -> Tensor:
        """Smallest count whose cumulative probability reaches ``level`` ``(M,)``, by bisection."""
        check_level(level)
        # float64, and no finer than its resolution: counts of 1e30 are not told from their neighbours.
        mean = self.mean.detach().double()
        low, high = torch.full_like(mean, -1.0), (mean + 2.0).ceil()
        while bool((short := self._cumulative(high) < level).any()):
            high = torch.where(short, 2.0 * high, high)
        while bool((open_ := high - low > (1e-12 * high).clamp_min(1.0)).any()):
            middle = ((low + high) / 2.0).floor()
            reached = self._cumulative(middle) >= level
            low, high = torch.where(open_ & ~reached, middle, low), torch.where(open_ & reached, middle, high)
        return high.to(self.mean)


class PoissonMixture(CountMixture):
    """Counts whose rate is random under the latent posterior.

    Args:
        weights: Node weights ``(S,)``.
        rates: Rates at the nodes ``(M, S)``.
        log_rate: Mean and standard deviation of a log-normal rate, each ``(M,)``, if that is what it is: where counts
            are so large that the conditional distributions at neighbouring nodes do not overlap, the distribution
            function is computed from these.
    """

    component_distribution: Poisson

    def __init__(self, weights: Tensor, rates: Tensor, log_rate: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(weights, distributions.Poisson(rates, validate_args=False))
        self.log_rate = log_rate

    def _cumulative(self, counts: Tensor) -> Tensor:
        cdf = torch.where(counts < 0, 0.0, super()._cumulative(counts))
        return cdf if self.log_rate is None else self._smooth(counts, cdf)

    def _smooth(self, counts: Tensor, otherwise: Tensor) -> Tensor:
        """``P(y <= k) = E[Phi((log G - mean) / s)]`` over ``G ~ Gamma(k + 1)``, cube root normal (Wilson & Hilferty 1931)."""
        assert self.log_rate is not None
        mean, scale = (value.double() for value in self.log_rate)
        shape = (counts + 1.0).clamp_min(1.0)
        total = torch.zeros_like(shape)
        nodes, weights = gauss_hermite(20, like=shape)
        for node, weight in zip(nodes, weights, strict=True):
            root = (1.0 - 1.0 / (9.0 * shape) + node / (3.0 * shape.sqrt())).clamp_min(1e-3)
            total = total + weight * torch.special.ndtr(
                (3.0 * root.log() + shape.log() - mean) / scale.clamp_min(1e-30)
            )
        return torch.where((shape > 50.0) & (scale * shape.sqrt() > 1.0), total, otherwise)

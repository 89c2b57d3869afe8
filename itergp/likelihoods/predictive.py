"""Predictive distributions: observations with the latent uncertainty integrated out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, MixtureSameFamily, Normal, Poisson

from itergp.errors import InputError
from itergp.likelihoods.quadrature import gauss_hermite, psd_root

_ACCURACY = 3e-4
_REPLICATES = 8
_MAX_POINTS = 8192
_DRAWS = 256
_CHUNK = 2**20  # latent values evaluated at once: few enough to stay in cache


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise InputError(f"`level` must be between 0 and 1. Got {level}. Pass 0.9 for the 90 % quantile.")


class BernoulliPredictive(Bernoulli):
    """Class probabilities of a binary label; ``probs`` is that of class 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of labels 0 and 1 of any dtype."""
        return super().log_prob(value.to(self.probs))

    def quantile(self, level: float) -> Tensor:
        """Smallest label whose cumulative probability reaches ``level``."""
        _check_level(level)
        return (1.0 - self.probs < level).to(self.probs)


class CategoricalPredictive(Categorical):
    """Class probabilities ``probs`` ``(M, C)`` with the standard error of the integration.

    Attributes:
        standard_error: Of each probability, ``(M, C)``; zeros when nothing was sampled.
    """

    def __init__(self, probs: Tensor, standard_error: Tensor) -> None:
        super().__init__(probs=probs, validate_args=False)
        self.standard_error = standard_error


class NormalPredictive(Normal):
    """Gaussian observations."""

    def quantile(self, level: float) -> Tensor:
        """Quantile of the observations at ``level``."""
        _check_level(level)
        return self.icdf(torch.as_tensor(level, dtype=self.loc.dtype, device=self.loc.device))


class QuadratureMixture(MixtureSameFamily):
    """Mixture of the conditional distributions at quadrature nodes; discrete or continuous.

    Args:
        weights: Node weights ``(S,)``.
        components: Conditional distributions with batch shape ``(M, S)``.
    """

    def __init__(self, weights: Tensor, components: Distribution) -> None:
        mixing = Categorical(probs=weights.expand(components.batch_shape), validate_args=False)
        super().__init__(mixing, components, validate_args=False)

    def quantile(self, level: float) -> Tensor:
        """Quantile of the observations at ``level``.

        By bisection of the distribution function, or, for components without one, from 256 fixed-seed samples at every node.
        """
        _check_level(level)
        try:
            self.cdf(self.mean)
        except NotImplementedError:
            return self._sampled_quantile(level)
        spread = self.variance.sqrt()
        low, high = self.mean - spread, self.mean + spread
        for _ in range(60):
            low = torch.where(self.cdf(low) > level, low - 2.0 * (high - low), low)
            high = torch.where(self.cdf(high) < level, high + 2.0 * (high - low), high)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high

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
    constraints: Any = type(distribution).arg_constraints
    names = [name for name in constraints if not (name == "logits" and "probs" in constraints)]
    parameters = {name: getattr(distribution, name).expand(distribution.batch_shape)[rows] for name in names}
    return type(distribution)(**parameters, validate_args=False)


class PoissonMixture(QuadratureMixture):
    """Counts whose rate is random under the latent posterior.

    Args:
        weights: Node weights ``(S,)``.
        rates: Rates at the nodes ``(M, S)``.
        log_rate: Mean and standard deviation of a log-normal rate, each ``(M,)``, if that is what it is: where counts
            are so large that the conditional distributions at neighbouring nodes do not overlap, the distribution
            function is computed from these.
    """

    def __init__(self, weights: Tensor, rates: Tensor, log_rate: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(weights, Poisson(rates, validate_args=False))
        self.log_rate = log_rate

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, with ``value`` broadcast against ``(M,)``."""
        rates = self.component_distribution.rate  # type: ignore[attr-defined]
        counts = torch.as_tensor(value, dtype=rates.dtype, device=rates.device).floor().expand(self.batch_shape)
        below = torch.special.gammaincc(counts.clamp_min(0.0).unsqueeze(-1) + 1.0, rates)
        cdf = torch.where(counts < 0, 0.0, (self.mixture_distribution.probs * below).sum(-1))
        return cdf if self.log_rate is None else self._smooth_cdf(counts, cdf)

    def _smooth_cdf(self, counts: Tensor, otherwise: Tensor) -> Tensor:
        """``P(y <= k) = E[Phi((log G - mean) / s)]`` over ``G ~ Gamma(k + 1)``, cube root normal (Wilson & Hilferty 1931)."""
        assert self.log_rate is not None
        mean, scale = self.log_rate
        shape = (counts + 1.0).clamp_min(1.0)
        total = torch.zeros_like(mean)
        nodes, weights = gauss_hermite(20, like=mean)
        for node, weight in zip(nodes, weights, strict=True):
            root = (1.0 - 1.0 / (9.0 * shape) + node / (3.0 * shape.sqrt())).clamp_min(1e-3)
            total = total + weight * torch.special.ndtr(
                (3.0 * root.log() + shape.log() - mean) / scale.clamp_min(1e-30)
            )
        return torch.where((shape > 50.0) & (scale * shape.sqrt() > 1.0), total, otherwise)

    def quantile(self, level: float) -> Tensor:
        """Smallest count whose cumulative probability reaches ``level``, by bisection."""
        _check_level(level)
        # float64, and no finer than its resolution: counts of 1e30 are not told from their neighbours.
        rates: Tensor = self.component_distribution.rate  # type: ignore[attr-defined]
        log_rate = None if self.log_rate is None else (self.log_rate[0].double(), self.log_rate[1].double())
        wide = PoissonMixture(self.mixture_distribution.probs.double(), rates.double(), log_rate)
        low = torch.full_like(wide.mean, -1.0)
        high = (wide.mean + 2.0).ceil()
        while bool((short := wide.cdf(high) < level).any()):
            high = torch.where(short, 2.0 * high, high)
        while bool((open_ := high - low > (1e-12 * high).clamp_min(1.0)).any()):
            middle = ((low + high) / 2.0).floor()
            reached = wide.cdf(middle) >= level
            low, high = torch.where(open_ & ~reached, middle, low), torch.where(open_ & reached, middle, high)
        return high.to(self.mean)


def expected_sigmoid(mean: Tensor, variance: Tensor) -> Tensor:
    """``E[sigmoid(f)]`` for ``f ~ N(mean, variance)``, to 1e-6 for every mean and variance.

    Integration by parts turns the expectation into that of ``Phi((mean - t) / s)`` over a standard logistic ``t``, whose
    trapezoidal rule converges geometrically when ``s`` is not small; below ``s = 1`` Gauss-Hermite does.

    Args:
        mean: Latent means, any shape.
        variance: Latent variances, same shape.
    """
    mean64, scale = mean.double(), variance.double().clamp_min(1e-300).sqrt()  # with a derivative at zero
    nodes, weights = gauss_hermite(32, like=mean64)
    total_small, total_large = torch.zeros_like(mean64), torch.zeros_like(mean64)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        total_small += weight * torch.sigmoid(mean64 + scale * node)
    step, safe = 0.5, scale.clamp_min(1e-3)
    for index in range(-72, 73):
        t = index * step
        density = math.exp(-abs(t)) / (1.0 + math.exp(-abs(t))) ** 2
        total_large += step * density * torch.special.ndtr((mean64 - t) / safe)
    return torch.where(scale < 1.0, total_small, total_large.clamp(0.0, 1.0)).to(mean)


def expected_softmax(
    mean: Tensor, covariance: Tensor, seed: int = 0, accuracy: float = _ACCURACY
) -> tuple[Tensor, Tensor]:
    """``E[softmax(f)]`` for ``f ~ N(mean, covariance)`` by randomised quasi-Monte Carlo.

    Eight independently scrambled Sobol sequences are doubled in length until the standard error between them is below
    the accuracy for every probability, or each has 8,192 points.

    Args:
        mean: ``(M, C)``.
        covariance: ``(M, C, C)``.
        seed: Seed of the scrambling; equal seeds give equal results.
        accuracy: Wanted standard error of every probability; infinity for 256 points in all.

    Returns:
        Probabilities ``(M, C)`` and their standard errors ``(M, C)``.
    """
    if not bool(covariance.any()):
        return torch.softmax(mean, -1), torch.zeros_like(mean)
    probs, errors = torch.empty_like(mean), torch.empty_like(mean)
    todo = torch.arange(mean.shape[0], device=mean.device)
    root = _principal_root(covariance)
    points = 32
    while todo.numel() > 0:
        nodes = _sobol_normal(points, root.shape[-1], seed).to(mean)
        for rows in todo.split(max(1, _CHUNK // (_REPLICATES * points * mean.shape[1]))):
            means = _replicate_means(mean[rows], root[rows], nodes)
            probs[rows] = means.mean(0)
            errors[rows] = means.std(0) / math.sqrt(_REPLICATES)
        if points >= _MAX_POINTS:
            break
        todo = todo[(errors[todo] > accuracy).any(-1)]
        points *= 2
    return probs / probs.sum(-1, keepdim=True), errors


def _principal_root(covariance: Tensor) -> Tensor:
    """Root ``(M, C, C - 1)`` of the covariance of logit differences, largest direction first.

    Softmax ignores a constant added to all latent values, so their common part need not be sampled; and quasi-random
    points are most even in their first coordinates.
    """
    root = psd_root(covariance)
    root = root - root.mean(-2, keepdim=True)
    with torch.no_grad():  # any fixed rotation is valid, so none needs a derivative
        _, rotation = torch.linalg.eigh(root.mT @ root)
    return (root @ rotation.flip(-1))[..., :-1]


def _sobol_normal(points: int, dimension: int, seed: int) -> Tensor:
    """Standard normal points ``(replicates, points, dimension)``."""
    draws = [
        torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed + r).draw(points, dtype=torch.float64)
        for r in range(_REPLICATES)
    ]
    tiny = 2.0**-40
    return torch.special.ndtri(torch.stack(draws).clamp(tiny, 1.0 - tiny))


def _replicate_means(mean: Tensor, root: Tensor, nodes: Tensor) -> Tensor:
    """Mean of softmax over each replicate's points, ``(replicates, M, C)``."""
    # Points are the last dimension: sums over the few classes then run along contiguous memory.
    f = torch.baddbmm(mean.unsqueeze(-1), root, nodes.flatten(0, 1).mT.expand(root.shape[0], -1, -1))
    f = torch.softmax(f, 1)
    return f.unflatten(-1, nodes.shape[:2]).mean(-1).movedim(-1, 0)

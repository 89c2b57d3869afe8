"""Predictive distributions of labels and real values: observations with the latent uncertainty integrated out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, LogNormal, Normal

from itergp.likelihoods.mixtures import check_level


class BernoulliPredictive(Bernoulli):
    """Class probabilities of a binary label; ``probs`` is that of class 1."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of labels 0 and 1 of any dtype."""
        return super().log_prob(value.to(self.probs))

    def quantile(self, level: float) -> Tensor:
        """Smallest label whose cumulative probability reaches ``level``."""
        check_level(level)
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
        check_level(level)
        return self.icdf(torch.as_tensor(level, dtype=self.loc.dtype, device=self.loc.device))


class LogNormalPredictive(LogNormal):
    """Positive observations whose logarithm is Gaussian."""

    def quantile(self, level: float) -> Tensor:
        """Quantile of the observations at ``level``."""
        check_level(level)
        return self.icdf(torch.as_tensor(level, dtype=self.loc.dtype, device=self.loc.device))


class OrdinalPredictive(CategoricalPredictive):
    """Probabilities of ordered levels ``0..K-1``: like class probabilities, and with moments and quantiles of the level."""

    @property
    def mean(self) -> Tensor:
        """Expected level ``(M,)``."""
        return (self.probs * self._levels).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the level ``(M,)``."""
        return (self.probs * (self._levels - self.mean.unsqueeze(-1)).square()).sum(-1)

    def cdf(self, value: Tensor) -> Tensor:
        """``P(y <= value)``, with ``value`` broadcast against ``(M,)``."""
        value = torch.as_tensor(value, dtype=self.probs.dtype, device=self.probs.device)
        return (self.probs * (self._levels <= value.unsqueeze(-1))).sum(-1)

    def quantile(self, level: float) -> Tensor:
        """Smallest level whose cumulative probability reaches ``level`` ``(M,)``."""
        check_level(level)
        short = self.probs.cumsum(-1)[..., :-1] < level
        return short.sum(-1).to(self.probs.dtype)

    @property
    def _levels(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)


# Distributions of which a few numbers per row say everything: the arguments of their constructors.
_PARAMETERS: dict[type, tuple[str, ...]] = {
    BernoulliPredictive: ("probs",),
    CategoricalPredictive: ("probs", "standard_error"),
    OrdinalPredictive: ("probs", "standard_error"),
    NormalPredictive: ("loc", "scale"),
    LogNormalPredictive: ("loc", "scale"),
}


def joinable(predictive: Distribution) -> bool:
    """Whether ``joined`` can put parts of this kind together."""
    return type(predictive) in _PARAMETERS


def joined(parts: Sequence[Distribution]) -> Distribution:
    """The distribution of all rows from those of its parts, in order."""
    kind: Any = type(parts[0])
    values = {name: torch.cat([getattr(part, name) for part in parts]) for name in _PARAMETERS[kind]}
    return kind(**values) if kind in (CategoricalPredictive, OrdinalPredictive) else kind(**values, validate_args=False)

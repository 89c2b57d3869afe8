"""Binary labels."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, Observed
from itergp.likelihoods.integrals import expected_cloglog, expected_sigmoid
from itergp.likelihoods.predictive import BernoulliPredictive
from itergp.likelihoods.quadrature import node_covariance
from itergp.likelihoods.special import MAX_EXPONENT, continued_exp, inverse_mills, mills_slope
from itergp.likelihoods.targets import require_integers

Link = Literal["logit", "probit", "cloglog"]


class BernoulliLikelihood(Likelihood):
    r"""Binary labels 0 and 1 with ``p(y = 1 | f) = link^{-1}(f)``; log-concave, closed-form Hessian.

    Args:
        link: ``"logit"``, ``1 / (1 + exp(-f))`` (GPML eq. 3.9-3.15); ``"probit"``, the normal distribution function (GPML
            eq. 3.16), which GPyTorch's likelihood of the same name uses; or ``"cloglog"``, ``1 - exp(-exp(f))``, the
            complementary log-log of events that are seen if at least one of a Poisson number happens.

    Raises:
        InputError: If the link is none of these.

    Examples:
        >>> likelihood = BernoulliLikelihood()
        >>> g, W = likelihood.derivatives(torch.zeros(1, 1), torch.tensor([1.0]))
        >>> float(g), float(W)
        (0.5, 0.25)
    """

    observes: ClassVar[Observed] = "label"

    def __init__(self, link: Link = "logit") -> None:
        super().__init__()
        if link not in get_args(Link):
            raise InputError(f"`link` must be 'logit', 'probit' or 'cloglog'. Got {link!r}. Choose one of these.")
        self.link = link

    @property
    def bounded_curvature(self) -> bool:  # type: ignore[override]
        """Not of the complementary log-log: where nothing happened it is ``exp(f)``."""
        return self.link != "cloglog"

    @property
    def latent_width(self) -> float:  # type: ignore[override]
        """Half as wide where it is an exponential of an exponential."""
        return 0.5 if self.link == "cloglog" else 1.0

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Labels must be 0 or 1, as integers, floats or booleans; returned as floats.

        Raises:
            InputError: If they are not.
        """
        labels = require_integers(targets, "BernoulliLikelihood", "labels 0 or 1")
        wrong = labels[(labels != 0) & (labels != 1)].unique()
        if wrong.numel() > 0:
            raise InputError(
                f"`train_targets` must be labels 0 or 1 for BernoulliLikelihood. Got values {sorted(wrong.tolist())}. "
                "Re-encode the labels, or use CategoricalLikelihood for more than two classes."
            )
        return labels.to(targets.dtype if targets.is_floating_point() else torch.get_default_dtype())

    def missing(self, targets: Tensor) -> Tensor:
        """Labels NaN or -1."""
        return super().missing(targets) | (targets == -1)

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log p(y | f)``, accurate in both tails."""
        if self.link == "cloglog":
            return _cloglog_log_density(f.squeeze(-1), targets)
        margin = _sign(targets, f) * f.squeeze(-1)
        return torch.nn.functional.logsigmoid(margin) if self.link == "logit" else torch.special.log_ndtr(margin)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and negative Hessian (GPML eq. 3.15 and 3.16)."""
        if self.link == "cloglog":
            gradient, curvature = _cloglog_derivatives(f.squeeze(-1), targets)
            return gradient.unsqueeze(-1), curvature[..., None, None]
        sign = _sign(targets, f)
        margin = sign * f.squeeze(-1)
        if self.link == "logit":
            miss = torch.sigmoid(-margin)
            gradient, curvature = sign * miss, miss * torch.sigmoid(margin)
        else:
            ratio = inverse_mills(margin)
            gradient, curvature = sign * ratio, mills_slope(margin, ratio)
        return gradient.unsqueeze(-1), curvature[..., None, None]

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[log p(y_n | f_n)]`` for each row ``(N,)``: by the nodes, in closed form where it is ``-E[exp(f)]``."""
        value = super().expected_log_density(mean, offsets, weights, targets)
        if self.link != "cloglog":
            return value
        return torch.where(targets > 0.5, value, self.log_density(_tilted(mean, offsets, weights), targets))

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, 1)`` and curvature ``(N, 1, 1)``."""
        gradient, curvature = super().expected_derivatives(mean, offsets, weights, targets)
        if self.link != "cloglog":
            return gradient, curvature
        none = self.derivatives(_tilted(mean, offsets, weights), targets)
        seen = targets > 0.5
        return torch.where(seen[:, None], gradient, none[0]), torch.where(seen[:, None, None], curvature, none[1])

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Bernoulli:
        """Conditional distribution at latent values ``(..., N)``."""
        if self.link == "logit":
            return Bernoulli(logits=function_samples, validate_args=False)
        if self.link == "probit":
            return Bernoulli(probs=torch.special.ndtr(function_samples), validate_args=False)
        probs = -torch.expm1(-function_samples.clamp_max(MAX_EXPONENT).exp())
        return Bernoulli(probs=probs, validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> BernoulliPredictive:
        """Integrated class probabilities: closed form for probit, quadrature to 1e-6 for the others."""
        centre, variance = mean[..., 0], covariance[..., 0, 0]
        if self.link == "logit":
            probs = expected_sigmoid(centre, variance)
        elif self.link == "cloglog":
            probs = expected_cloglog(centre, variance)
        else:
            probs = torch.special.ndtr(centre / (1.0 + variance).sqrt())
        return BernoulliPredictive(probs=probs, validate_args=False)


def _tilted(mean: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Where ``exp`` is what it is on average: nodes do not reach what a wide marginal's average is made of."""
    return mean + 0.5 * node_covariance(offsets, weights)[..., 0]


def _sign(targets: Tensor, f: Tensor) -> Tensor:
    return (2.0 * targets - 1.0).to(f.dtype)


def _cloglog_log_density(latent: Tensor, targets: Tensor) -> Tensor:
    """``-exp(f)`` for 0 and ``log(1 - exp(-exp(f)))`` for 1."""
    rate, _ = continued_exp(latent)
    u, square = rate.clamp_max(0.05), rate.clamp_max(0.05).square()
    series = -0.5 * u + square / 24.0 * (1.0 - square / 120.0 * (1.0 - square / 63.0))  # of log((1 - exp(-u)) / u)
    some = rate.clamp(0.05, 1.0)
    rare = latent.clamp_max(0.0) + torch.where(rate < 0.05, series, torch.log(-torch.expm1(-some) / some))
    seen = torch.where(rate < 1.0, rare, torch.log1p(-torch.exp(-rate.clamp_min(0.5))))
    return torch.where(targets > 0.5, seen, -rate)


def _cloglog_derivatives(latent: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For 0 minus and plus the rate u; for 1 ``g = u / (exp(u) - 1)`` and ``W = g (u / (1 - exp(-u)) - 1)``."""
    rate = continued_exp(latent)[1]
    u = rate.clamp_min(torch.finfo(rate.dtype).tiny)
    chance = -torch.expm1(-u)
    gradient = u * torch.exp(-u) / chance
    series = u * (0.5 + u / 12.0 * (1.0 - u.square() / 60.0))  # where the difference cancels
    curvature = gradient * torch.where(u < 0.1, series, u / chance - 1.0)
    seen = targets > 0.5
    return torch.where(seen, gradient, -rate), torch.where(seen, curvature, rate)

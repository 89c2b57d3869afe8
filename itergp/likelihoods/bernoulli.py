"""Binary labels."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, require_integers
from itergp.likelihoods.predictive import BernoulliPredictive, expected_sigmoid


class BernoulliLikelihood(Likelihood):
    r"""Binary labels 0 and 1 with ``p(y = 1 | f) = link^{-1}(f)``; log-concave, closed-form Hessian.

    Args:
        link: ``"logit"``, ``1 / (1 + exp(-f))`` (GPML eq. 3.9-3.15), or ``"probit"``, the normal distribution
            function (GPML eq. 3.16), which GPyTorch's likelihood of the same name uses.

    Examples:
        >>> likelihood = BernoulliLikelihood()
        >>> g, W = likelihood.derivatives(torch.zeros(1, 1), torch.tensor([1.0]))
        >>> float(g), float(W)
        (0.5, 0.25)
    """

    def __init__(self, link: Literal["logit", "probit"] = "logit") -> None:
        super().__init__()
        if link not in ("logit", "probit"):
            raise InputError(f"`link` must be 'logit' or 'probit'. Got {link!r}.")
        self.link = link

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Labels must be 0 or 1, as integers, floats or booleans; returned as floats."""
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
        margin = _sign(targets, f) * f.squeeze(-1)
        return torch.nn.functional.logsigmoid(margin) if self.link == "logit" else torch.special.log_ndtr(margin)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and negative Hessian (GPML eq. 3.15 and 3.16)."""
        sign = _sign(targets, f)
        margin = sign * f.squeeze(-1)
        if self.link == "logit":
            miss = torch.sigmoid(-margin)
            gradient, curvature = sign * miss, miss * torch.sigmoid(margin)
        else:
            ratio = _inverse_mills(margin)
            gradient, curvature = sign * ratio, _probit_curvature(margin, ratio)
        return gradient.unsqueeze(-1), curvature[..., None, None]

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Bernoulli:
        """Conditional distribution at latent values ``(..., N)``."""
        if self.link == "logit":
            return Bernoulli(logits=function_samples, validate_args=False)
        return Bernoulli(probs=torch.special.ndtr(function_samples), validate_args=False)

    def predictive(self, mean: Tensor, covariance: Tensor) -> BernoulliPredictive:
        """Integrated class probabilities: closed form for probit, quadrature to 1e-6 for logit."""
        centre, variance = mean[..., 0], covariance[..., 0, 0]
        if self.link == "logit":
            probs = expected_sigmoid(centre, variance)
        else:
            probs = torch.special.ndtr(centre / (1.0 + variance).sqrt())
        return BernoulliPredictive(probs=probs, validate_args=False)


def _sign(targets: Tensor, f: Tensor) -> Tensor:
    return (2.0 * targets - 1.0).to(f.dtype)


def _inverse_mills(margin: Tensor) -> Tensor:
    """``N(z) / Phi(z)``, through the scaled complementary error function so that neither tail overflows."""
    root_half, root_two_over_pi = math.sqrt(0.5), math.sqrt(2.0 / math.pi)
    lower = root_two_over_pi / torch.special.erfcx(-root_half * margin.clamp_max(0.0))
    positive = margin.clamp_min(0.0)
    upper = torch.exp(-0.5 * positive.square()) / (math.sqrt(2.0 * math.pi) * torch.special.ndtr(positive))
    return torch.where(margin > 0.0, upper, lower)


def _probit_curvature(margin: Tensor, ratio: Tensor) -> Tensor:
    """``ratio (ratio + z)``, which tends to 1 as z -> -inf; there the difference cancels and a series replaces it."""
    inverse_square = margin.clamp_max(-1.0).square().reciprocal()
    # ratio + z = 1/|z| - 2/|z|^3 + 10/|z|^5 - ...; ratio ~ |z| + 1/|z| - 2/|z|^3 + 10/|z|^5
    tail = 1.0 - inverse_square * (1.0 - inverse_square * (6.0 - 50.0 * inverse_square))
    cut = -12.0 if margin.dtype == torch.float32 else -1e3
    return torch.where(margin < cut, tail, ratio * (ratio + margin)).clamp_min(0.0)

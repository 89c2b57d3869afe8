"""Ordered levels: grades, ratings, stages."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, Observed
from itergp.likelihoods.integrals import expected_sigmoid
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.predictive import OrdinalPredictive
from itergp.likelihoods.special import interval_curvature, log1mexp, normal_interval
from itergp.likelihoods.targets import require_labels

Link = Literal["logit", "probit"]
_BEYOND = 1e5  # stands for an infinite cutpoint: no latent value comes near it


class OrdinalLikelihood(Likelihood):
    r"""Levels ``0..K-1`` with ``p(y <= k | f) = F(c_k - f)``, F logistic or normal; log-concave, closed-form Hessian.

    The cumulative (proportional odds, graded) model: one latent function, cut into levels at learnable, increasing cutpoints
    ``c_0 < ... < c_{K-2}``, of which the parameters are the first and the differences. A shift of all cutpoints is a
    shift of the mean: with a learnable mean, fix one of the two if you want to read them. Cutpoints that are still at their
    default are set from the frequencies of the levels by ``itergp.fit``.

    Targets are labels 0..K-1 in increasing order, ``(N,)``. Source: McCullagh 1980, Regression Models for Ordinal Data; Chu &
    Ghahramani 2005, Gaussian Processes for Ordinal Regression.

    Args:
        num_levels: Number of levels K, at least 2.
        link: ``"logit"`` or ``"probit"``.
        cutpoints: Initial cutpoints ``(K - 1,)``, increasing; default those that make all levels equally frequent at f = 0.
        increments_prior: Prior over the differences of the cutpoints ``(K - 2,)``.
        increments_constraint: Constraint on them; default positive.

    Raises:
        InputError: If there are fewer levels, the link is another, or cutpoints do not increase.

    Examples:
        >>> likelihood = OrdinalLikelihood(4)
        >>> [round(c, 3) for c in likelihood.cutpoints.tolist()]
        [-1.099, 0.0, 1.099]
        >>> likelihood.predictive(torch.zeros(1, 1), torch.zeros(1, 1, 1)).probs.round(decimals=3)
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]], grad_fn=<RoundBackward1>)
    """

    observes: ClassVar[Observed] = "level"
    bounded_curvature = True

    increments = ConstrainedParameter()
    """Differences between neighbouring cutpoints ``(K - 2,)``."""

    def __init__(
        self,
        num_levels: int,
        link: Link = "logit",
        *,
        cutpoints: Tensor | None = None,
        increments_prior: Prior | None = None,
        increments_constraint: Interval | None = None,
    ) -> None:
        super().__init__()
        if num_levels < 2:
            raise InputError(f"`num_levels` must be at least 2. Got {num_levels}. Count the ordered levels.")
        if link not in get_args(Link):
            raise InputError(f"`link` must be 'logit' or 'probit'. Got {link!r}. Choose one of these.")
        self.num_levels, self.link = int(num_levels), link
        self.register_parameter("first_cutpoint", torch.nn.Parameter(torch.zeros(1)))
        type(self).increments.register(self, increments_constraint or Positive(), increments_prior, size=num_levels - 2)
        self.cutpoints = self._equal_cutpoints() if cutpoints is None else torch.as_tensor(cutpoints)

    @property
    def cutpoints(self) -> Tensor:
        """Cutpoints ``(K - 1,)``, increasing."""
        return torch.cat([self.first_cutpoint, self.first_cutpoint + self.increments.cumsum(0)])

    @cutpoints.setter
    def cutpoints(self, value: Tensor) -> None:
        value = torch.as_tensor(value).to(self.first_cutpoint)
        if value.shape != (self.num_levels - 1,) or not bool((value.diff() > 0).all()):
            raise InputError(
                f"`cutpoints` must be {self.num_levels - 1} increasing numbers. Got {value.tolist()}. Sort them."
            )
        self.initialize(first_cutpoint=value[:1])
        self.increments = value.diff()

    def _equal_cutpoints(self) -> Tensor:
        return self._quantiles(torch.arange(1, self.num_levels, dtype=torch.float64) / self.num_levels)

    def _quantiles(self, levels: Tensor) -> Tensor:
        return torch.logit(levels) if self.link == "logit" else torch.special.ndtri(levels)

    def initialise(self, targets: Tensor) -> list[str]:
        """Cutpoints from the frequencies of the levels, each counted once more than it occurs, if still at their default."""
        default = self._equal_cutpoints().to(self.cutpoints)
        if not self.first_cutpoint.requires_grad or not torch.allclose(self.cutpoints, default, atol=1e-4):
            return []
        counts = torch.bincount(targets, minlength=self.num_levels).double() + 1.0
        with torch.no_grad():
            self.cutpoints = self._quantiles((counts.cumsum(0) / counts.sum())[:-1])
        return ["likelihood.cutpoints"]

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Labels must be integers 0..K-1; returned as int64."""
        return require_labels(targets, "OrdinalLikelihood", self.num_levels, "num_levels")

    def missing(self, targets: Tensor) -> Tensor:
        """Labels NaN or -1."""
        return super().missing(targets) | (targets == -1)

    def _bounds(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Distances from f to the cutpoints above and below each row's level, ``(..., N)``."""
        cutpoints = self.cutpoints.to(f.dtype)
        end = cutpoints.new_full((1,), _BEYOND)
        cutpoints = torch.cat([-end, cutpoints, end])
        latent = f.squeeze(-1)
        return cutpoints[targets + 1] - latent, cutpoints[targets] - latent

    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log(F(upper) - F(lower))`` without a difference of two numbers near 0 or 1."""
        upper, lower = self._bounds(f, targets)
        if self.link == "probit":
            return normal_interval(upper, lower)[0].to(f.dtype)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
        log_sigmoid = torch.nn.functional.logsigmoid
        return log_sigmoid(upper) + log_sigmoid(-lower) + log1mexp(upper - lower)

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and negative Hessian in closed form."""
        upper, lower = self._bounds(f, targets)
        if self.link == "probit":
            _, at_upper, at_lower = normal_interval(upper, lower)  # densities over the probability of the level
            curvature = interval_curvature(upper, lower, at_upper, at_lower).to(f.dtype)
            gradient = (at_lower - at_upper).to(f.dtype)
        else:
            above, below = torch.sigmoid(-upper), torch.sigmoid(lower)
            gradient = below - above
            curvature = above * torch.sigmoid(upper) + below * torch.sigmoid(-lower)
        return gradient.unsqueeze(-1), curvature[..., None, None]

    def _probs(self, cumulative: Tensor) -> OrdinalPredictive:
        ends = cumulative.new_zeros(*cumulative.shape[:-1], 1)
        probs = torch.cat([ends, cumulative, 1.0 + ends], -1).diff().clamp_min(1e-12)
        return OrdinalPredictive(probs, torch.zeros_like(probs))

    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> OrdinalPredictive:
        """Conditional distribution at latent values ``(..., N)``."""
        distances = self.cutpoints.to(function_samples.dtype) - function_samples.unsqueeze(-1)
        return self._probs(torch.sigmoid(distances) if self.link == "logit" else torch.special.ndtr(distances))

    def predictive(self, mean: Tensor, covariance: Tensor) -> OrdinalPredictive:
        """Integrated probabilities of the levels ``(M, K)``: closed form for probit, quadrature to 1e-6 for logit."""
        variance = covariance[..., 0].clamp_min(0.0).double()  # (M, 1)
        distances = self.cutpoints.double() - mean.double()
        if self.link == "logit":
            cumulative = expected_sigmoid(distances, variance.expand_as(distances))
        else:
            cumulative = torch.special.ndtr(distances / (1.0 + variance).sqrt())
        predictive = self._probs(cumulative)
        return OrdinalPredictive(predictive.probs.to(mean.dtype), predictive.standard_error.to(mean.dtype))

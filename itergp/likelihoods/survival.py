"""Times until an event, some of them censored."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from gpytorch.constraints import Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor
from torch.nn.functional import logsigmoid

from itergp.errors import InputError
from itergp.likelihoods.base import Observed
from itergp.likelihoods.distributions import LogLogistic, Weibull
from itergp.likelihoods.mixtures import QuadratureMixture
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.special import MAX_EXPONENT, continued_exp
from itergp.likelihoods.targets import as_floats, check_columns, require_inside


class SurvivalMixture(QuadratureMixture):
    """Mixture of times, whose ``log_prob`` knows what censoring is."""

    component_distribution: Weibull | LogLogistic

    def log_survival(self, value: Tensor) -> Tensor:
        """``log P(T > t)`` of times broadcast against ``(M,)``, accurate where that is small."""
        times = torch.as_tensor(value).to(self.mixture_distribution.logits).unsqueeze(-1)
        return torch.logsumexp(self.component_distribution.log_survival(times) + self.mixture_distribution.logits, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of times ``(M,)``, or of targets ``(M, 2)``, where it is ``log P(T > t)`` of censored ones.

        Raises:
            InputError: For ``(2, 2)`` and two rows, which may be two samples of times, or two targets with their
                indicators.
        """
        value, rows = torch.as_tensor(value), self.batch_shape[-1]
        if value.dim() < 2 or value.shape[-2:] != (rows, 2):
            return super().log_prob(value)
        if rows == 2:
            raise InputError(
                "`value` of two rows must be times (2,). Got shape (..., 2, 2): samples of times, or times with event "
                "indicators. Use likelihood.log_marginal(targets, model(x)) for the latter, one sample after the "
                "other for the former."
            )
        times, events = value.to(self.mixture_distribution.logits).unsqueeze(-2).unbind(-1)  # (..., M, 1)
        if not bool(((events == 0) | (events == 1)).all()):
            raise InputError(
                "Event indicators must be 0 or 1, in the second column of `value`. Got others. Code observed events "
                "as 1 and right-censored rows as 0."
            )
        components = self.component_distribution
        density = torch.where(events.bool(), components.log_prob(times), components.log_survival(times))
        return torch.logsumexp(density + self.mixture_distribution.logits, -1)


class _SurvivalLikelihood(SingleLatentLikelihood):
    """Accelerated failure times ``T = exp(f) V^(1 / shape)``, where V has a distribution of its own; some are censored."""

    observes: ClassVar[Observed] = "positive"
    second_column: ClassVar[float | None] = 1.0

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Times must be positive, event indicators 0 or 1; returned as floats."""
        name = type(self).__name__
        check_columns(targets, name, "event indicator")
        times = targets if targets.dim() == 1 else targets[:, 0]
        remedy = "Shift times that were rounded to 0 by half the unit of measurement."
        require_inside(times, times > 0, name, "positive times", remedy)
        if targets.dim() == 2:
            events = targets[:, 1]
            remedy = "Code observed events as 1 and right-censored rows as 0."
            require_inside(events, (events == 0) | (events == 1), name, "0 or 1 in the second column", remedy)
        return as_floats(targets)

    @abstractmethod
    def _conditional(self, latent: Tensor, *second: Tensor) -> Weibull | LogLogistic:
        """``p(T | f)`` with the batch shape of ``latent``."""

    def predictive(self, mean: Tensor, covariance: Tensor) -> SurvivalMixture:
        """Mixture of times over quadrature nodes; ``log_prob`` takes times, or targets with their event indicators."""
        latent, weights = self._nodes(mean, covariance)
        return SurvivalMixture(weights, self._conditional(latent))


class _WeibullTimes(_SurvivalLikelihood):
    """Weibull times ``P(T > t) = exp(-(t exp(-f))^shape)``; ``z = shape (log t - f)`` is the logarithm of the hazard so far."""

    def _shape(self, like: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        shape, log_time = self._shape(latent), y.log()
        z = shape * (log_time - latent)
        return second[0] * (shape.log() - log_time + z) - continued_exp(z)[0]

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        shape = self._shape(latent)
        _, hazard = continued_exp(shape * (y.log() - latent))
        return shape * (hazard - second[0]), shape.square() * hazard

    def _exponential(self, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor] | None:
        shape = self._shape(y)
        return -shape * second[0], -shape

    def _conditional(self, latent: Tensor, *second: Tensor) -> Weibull:
        return Weibull(latent, self._shape(latent), validate_args=False)


class WeibullLikelihood(_WeibullTimes):
    """Accelerated failure times ``T = exp(f) E^(1 / shape)``, E standard exponential; log-concave, closed-form Hessian.

    ``exp(f)`` stretches time; ``exp(f) log(2)^(1 / shape)`` is the median. The hazard grows with time if shape is above 1.
    Targets are times ``(N,)`` if every event was observed, or ``(N, 2)`` with the event indicator in the second column: 1
    observed, 0 right-censored, that is, known to be later than the time.

    ``log_prob`` of a predictive distribution is the density of observed times, or of targets ``(N, 2)`` with their
    indicators; ``1 - cdf`` is the probability of surviving a time.

    Args:
        shape: Initial shape; default softplus(0), about 0.69.
        shape_prior: Prior over the shape.
        shape_constraint: Constraint on the shape; default positive.
    """

    shape = ConstrainedParameter()
    """Shape ``(1,)``: 1 is a constant hazard."""

    def __init__(
        self, shape: float | None = None, shape_prior: Prior | None = None, shape_constraint: Interval | None = None
    ) -> None:
        super().__init__()
        type(self).shape.register(self, shape_constraint or Positive(), shape_prior, shape)

    def _shape(self, like: Tensor) -> Tensor:
        return self.shape.to(like.dtype)


class ExponentialLikelihood(_WeibullTimes):
    """Times with a constant hazard and mean ``exp(f)``; log-concave, closed-form Hessian.

    Targets are times ``(N,)`` if every event was observed, or ``(N, 2)`` with the event indicator in the second column: 1
    observed, 0 right-censored.

    Examples:
        >>> import torch
        >>> likelihood = ExponentialLikelihood()
        >>> y = likelihood.validate_targets(torch.tensor([[2.0, 1.0], [2.0, 0.0]]))  # an event, and none until 2
        >>> likelihood.log_density(torch.zeros(2, 1), y).tolist()
        [-2.0, -2.0]
        >>> likelihood.derivatives(torch.zeros(2, 1), y)[0].flatten().tolist()
        [1.0, 2.0]
    """

    def _shape(self, like: Tensor) -> Tensor:
        return like.new_ones(1)


class LogLogisticLikelihood(_SurvivalLikelihood):
    """Times ``P(T > t) = 1 / (1 + (t exp(-f))^shape)`` with median ``exp(f)``; log-concave, closed-form Hessian.

    The logarithm of the time is ``f`` plus logistic noise, close to log-normal times. If shape is above 1, the hazard rises at
    first and falls later; otherwise it falls. There is a mean only if shape is above 1.

    Targets are times ``(N,)`` if every event was observed, or ``(N, 2)`` with the event indicator in the second column: 1
    observed, 0 right-censored.

    Args:
        shape: Initial shape; default softplus(0), about 0.69.
        shape_prior: Prior over the shape.
        shape_constraint: Constraint on the shape; default positive.

    Examples:
        >>> import torch
        >>> likelihood = LogLogisticLikelihood(shape=2.0)
        >>> y = likelihood.validate_targets(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))  # an event, and none until 1
        >>> [round(value, 4) for value in likelihood.log_density(torch.zeros(2, 1), y).exp().tolist()]
        [0.5, 0.5]
    """

    shape = ConstrainedParameter()
    """Shape ``(1,)``: the inverse scale of the logistic noise of ``log T``."""

    def __init__(
        self, shape: float | None = None, shape_prior: Prior | None = None, shape_constraint: Interval | None = None
    ) -> None:
        super().__init__()
        type(self).shape.register(self, shape_constraint or Positive(), shape_prior, shape)

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        shape, log_time, events = self.shape.to(latent.dtype), y.log(), second[0]
        z = shape * (log_time - latent)
        return events * (shape.log() - log_time + logsigmoid(z)) + logsigmoid(-z)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        shape, events = self.shape.to(latent.dtype), second[0]
        z = shape * (y.log() - latent)
        over, left = torch.sigmoid(z), torch.sigmoid(-z)
        return shape * (over - events * left), shape.square() * (1.0 + events) * over * left

    def _conditional(self, latent: Tensor, *second: Tensor) -> LogLogistic:
        return LogLogistic(latent, self.shape.to(latent.dtype), validate_args=False)

    def _typical(self, latent: Tensor, *second: Tensor) -> Tensor:
        return torch.exp(latent.clamp(-MAX_EXPONENT, MAX_EXPONENT))  # the median: a mean need not exist

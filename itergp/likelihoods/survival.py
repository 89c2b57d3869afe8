"""Times until an event, some of them censored."""

from __future__ import annotations

from typing import ClassVar

from gpytorch.constraints import Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor

from itergp.likelihoods.distributions import Weibull
from itergp.likelihoods.parameters import ConstrainedParameter
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.special import continued_exp
from itergp.likelihoods.targets import as_floats, check_columns, require_inside


class _SurvivalLikelihood(SingleLatentLikelihood):
    """Weibull times ``P(T > t) = exp(-(t exp(-f))^shape)``; ``z = shape (log t - f)`` is the logarithm of the hazard so far."""

    second_column: ClassVar[float | None] = 1.0

    def _shape(self, like: Tensor) -> Tensor:
        raise NotImplementedError

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

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        shape, log_time = self._shape(latent), y.log()
        z = shape * (log_time - latent)
        return second[0] * (shape.log() - log_time + z) - continued_exp(z)[0]

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        shape = self._shape(latent)
        _, hazard = continued_exp(shape * (y.log() - latent))
        return shape * (hazard - second[0]), shape.square() * hazard

    def _conditional(self, latent: Tensor, *second: Tensor) -> Weibull:
        return Weibull(latent, self._shape(latent), validate_args=False)


class WeibullLikelihood(_SurvivalLikelihood):
    """Accelerated failure times ``T = exp(f) E^(1 / shape)``, E standard exponential; log-concave, closed-form Hessian.

    ``exp(f)`` stretches time; ``exp(f) log(2)^(1 / shape)`` is the median. The hazard grows with time if shape is above 1.
    Targets are times ``(N,)`` if every event was observed, or ``(N, 2)`` with the event indicator in the second column: 1
    observed, 0 right-censored, that is, known to be later than the time.

    ``log_prob`` of a predictive distribution is the density of an observed time and ``1 - cdf`` the probability of surviving
    it; ``log_marginal`` takes targets with their indicators.

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


class ExponentialLikelihood(_SurvivalLikelihood):
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

"""Times until an event, some of them censored."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.priors import Prior
from torch import Tensor
from torch.nn.functional import logsigmoid

from itergp.errors import InputError
from itergp.likelihoods.base import Observed
from itergp.likelihoods.distributions import LogLogistic, LogNormal, Weibull
from itergp.likelihoods.mixtures import QuadratureMixture
from itergp.likelihoods.parameters import SMALLEST_NOISE, ConstrainedParameter
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.special import (
    MAX_EXPONENT,
    continued_exp,
    interval_slopes,
    inverse_mills,
    log_mass,
    mass_slopes,
    mills_slope,
)
from itergp.likelihoods.targets import as_floats, check_columns, require_inside

_Times = Weibull | LogLogistic | LogNormal
RIGHT, OBSERVED, LEFT, INTERVAL = 0.0, 1.0, 2.0, 3.0  # event indicators, as those of R's Surv


class SurvivalMixture(QuadratureMixture):
    """Mixture of times, whose ``log_prob`` knows what censoring is."""

    component_distribution: _Times

    def log_survival(self, value: Tensor) -> Tensor:
        """``log P(T > t)`` of times broadcast against ``(M,)``, accurate where that is small."""
        times = torch.as_tensor(value).to(self.mixture_distribution.logits).unsqueeze(-1)
        return torch.logsumexp(self.component_distribution.log_survival(times) + self.mixture_distribution.logits, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of times ``(M,)``, or of targets ``(M, 2)`` or ``(M, 3)``, of censored ones ``log P`` of what is known.

        Raises:
            InputError: For ``(2, 2)`` and two rows, or ``(3, 3)`` and three, which may be samples of times, or targets with
                their indicators.
        """
        value, rows = torch.as_tensor(value), self.batch_shape[-1]
        if value.dim() < 2 or value.shape[-2] != rows or value.shape[-1] not in (2, 3):
            return super().log_prob(value)
        if rows == value.shape[-1]:
            raise InputError(
                f"`value` of {rows} rows must be times ({rows},). Got shape (..., {rows}, {rows}): samples of times, or times "
                "with event indicators. Use likelihood.log_marginal(targets, model(x)) for the latter, one sample after the "
                "other for the former."
            )
        known, remedy = _coded(value[..., 1], value.shape[-1])
        if not bool(known.all()):
            expected = "0 or 1" if value.shape[-1] == 2 else "0, 1, 2 or 3"
            raise InputError(
                f"Event indicators must be {expected}, in the second column of `value`. Got others. {remedy}"
            )
        return self.log_observed(value)

    def log_observed(self, targets: Tensor) -> Tensor:
        """``log_prob`` of valid targets ``(..., M, 2)`` or ``(..., M, 3)`` with event indicators, for any number of rows."""
        return torch.logsumexp(self._log_densities(targets.unsqueeze(-2)) + self.mixture_distribution.logits, -1)

    def _log_densities(self, targets: Tensor) -> Tensor:
        """Those of the components ``(..., M, S)`` for targets ``(..., M, 1, 2 or 3)``."""
        times, events, *upper = targets.to(self.mixture_distribution.logits).unbind(-1)
        components = self.component_distribution
        found = torch.where(events == OBSERVED, components.log_prob(times), components.log_survival(times))
        if not upper:
            return found
        between = events == INTERVAL
        lower, end = torch.where(between, times, 0.0), torch.where(between, upper[0], times)
        return torch.where(between | (events == LEFT), components.log_interval(lower, end), found)


def _coded(events: Tensor, num_columns: int) -> tuple[Tensor, str]:
    """Which event indicators are those of targets with 2 or 3 columns, and what the others should be coded as."""
    known = torch.tensor((RIGHT, OBSERVED, LEFT, INTERVAL)[: 2 if num_columns == 2 else 4]).to(events)
    more = "" if num_columns == 2 else ", left-censored ones as 2, intervals as 3 with their end in the third column"
    return torch.isin(events, known), f"Code observed events as 1 and right-censored rows as 0{more}."


class _SurvivalLikelihood(SingleLatentLikelihood):
    """Accelerated failure times ``T = exp(f) V^(1 / shape)``, where V has a distribution of its own; some are censored."""

    observes: ClassVar[Observed] = "positive"
    second_column: ClassVar[float | None] = OBSERVED

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Times must be positive, event indicators known, and intervals end after they begin; returned as floats."""
        name = type(self).__name__
        if targets.dim() != 2 or targets.shape[1] != 3:
            check_columns(targets, name, "event indicator")
        require_inside(targets, torch.isfinite(targets), name, "finite", "Drop those rows, or censor them.")
        times = targets if targets.dim() == 1 else targets[:, 0]
        remedy = "Shift times that were rounded to 0 by half the unit of measurement."
        require_inside(times, times > 0, name, "positive times", remedy)
        if targets.dim() == 2:
            known, remedy = _coded(targets[:, 1], targets.shape[1])
            expected = "0 or 1" if targets.shape[1] == 2 else "0, 1, 2 or 3"
            require_inside(targets[:, 1], known, name, f"{expected} in the second column", remedy)
        if targets.dim() == 2 and targets.shape[1] == 3:
            ends, between = targets[:, 2], targets[:, 1] == INTERVAL
            remedy = "Code intervals without a length as observed, and keep short ones in float64."
            expected = "an end later than the time, in the third column of an interval,"
            require_inside(ends, ~between | (ends > times), name, expected, remedy)
        return as_floats(targets)

    @abstractmethod
    def _conditional(self, latent: Tensor, *second: Tensor) -> _Times:
        """``p(T | f)`` with the batch shape of ``latent``."""

    def predictive(self, mean: Tensor, covariance: Tensor) -> SurvivalMixture:
        """Mixture of times over quadrature nodes; ``log_prob`` takes times, or targets with their event indicators."""
        latent, weights = self._nodes(mean, covariance)
        return SurvivalMixture(weights, self._conditional(latent))


class _MedianTimes(_SurvivalLikelihood):
    """Times with median ``exp(f)``."""

    def _typical(self, latent: Tensor, *second: Tensor) -> Tensor:
        return torch.exp(latent.clamp(-MAX_EXPONENT, MAX_EXPONENT))  # a mean need not exist, or be a number


def _log_ratio(start: Tensor, end: Tensor, between: Tensor) -> Tensor:
    """``log(end / start)`` of intervals, which short ones keep the digits of; 1 for other rows."""
    return torch.where(between, torch.log1p((torch.where(between, end, 2.0 * start) - start) / start), 1.0)


class _WeibullTimes(_SurvivalLikelihood):
    """Weibull times ``P(T > t) = exp(-H(t))`` with ``H(t) = (t exp(-f))^shape``, the hazard so far.

    Of an interval, ``log [S(a) - S(b)] = -H(a) + log(1 - exp(-d))`` with ``d = H(b) - H(a)``, whose logarithm is linear in f.
    The second term, which left-censored rows have alone, has a slope between 0 and ``-shape``, and its curvature is bounded.
    """

    def _shape(self, like: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def latent_width(self) -> float:  # type: ignore[override]
        """Of intervals and left-censored rows, an exponential of an exponential."""
        return 0.5 / float(self._shape(torch.ones(())).detach())

    # ------------------------------------------------- hazards until the time
    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        return self._until(latent, y, *second) + self._within(latent, y, *second)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        first, other = self._until_derivatives(latent, y, *second), self._within_derivatives(latent, y, *second)
        return first[0] + other[0], first[1] + other[1]

    def _until(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        """What the hazard until the time says: of all but left-censored rows."""
        shape, log_time, events = self._shape(latent), y.log(), second[0]
        z = shape * (log_time - latent)
        hazard = torch.where(events == LEFT, 0.0, continued_exp(z)[0])
        return torch.where(events == OBSERVED, shape.log() - log_time + z, 0.0) - hazard

    def _until_derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        shape, events = self._shape(latent), second[0]
        _, hazard = continued_exp(shape * (y.log() - latent))
        hazard = torch.where(events == LEFT, 0.0, hazard)
        return shape * (hazard - (events == OBSERVED).to(hazard)), shape.square() * hazard

    # ------------------------------------------------------ hazard afterwards
    def _log_hazard_within(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        """``log d``, and of which rows."""
        (events, upper), shape = second, self._shape(latent)
        between = events == INTERVAL
        share = log_mass((shape * _log_ratio(y, upper, between)).log())
        end = torch.where(between, upper, y)
        return shape * (end.log() - latent) + torch.where(between, share, 0.0), between | (events == LEFT)

    def _within(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        """``log(1 - exp(-d))`` of intervals and left-censored rows, 0 for others."""
        if len(second) == 1:
            return torch.zeros_like(latent)
        log_hazard, known = self._log_hazard_within(latent, y, *second)
        return torch.where(known, log_mass(log_hazard), 0.0)

    def _within_derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        if len(second) == 1:
            return torch.zeros_like(latent), torch.zeros_like(latent)
        shape, (log_hazard, known) = self._shape(latent), self._log_hazard_within(latent, y, *second)
        ratio, bend = mass_slopes(log_hazard)
        return torch.where(known, -shape * ratio, 0.0), torch.where(known, shape.square() * bend, 0.0)

    # ----------------------------------------------------------- expectations
    def _exponential(self, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor] | None:
        shape = self._shape(y)
        return -shape * (second[0] == OBSERVED).to(y), -shape

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[log p(y_n | f_n)]`` for each row ``(N,)``: in closed form, but for what is bounded by the nodes."""
        if targets.dim() == 1 or targets.shape[1] == 2:
            return super().expected_log_density(mean, offsets, weights, targets)
        closed = self._closed_form(mean, offsets, weights, targets)
        assert closed is not None
        columns = self._columns(targets, mean)
        total = self._until(closed[0].squeeze(-1), *columns) - closed[1]

        def within(f: Tensor, y: Tensor) -> tuple[Tensor]:
            return (self._within(f.squeeze(-1), *self._columns(y, f)),)

        return total + self._averages(within, mean, offsets, weights, targets)[0]

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, 1)`` and curvature ``(N, 1, 1)``: in closed form, but for what is bounded by the nodes."""
        if targets.dim() == 1 or targets.shape[1] == 2:
            return super().expected_derivatives(mean, offsets, weights, targets)
        closed = self._closed_form(mean, offsets, weights, targets)
        assert closed is not None
        columns = self._columns(targets, mean)
        gradient, curvature = self._until_derivatives(closed[0].squeeze(-1), *columns)

        def within(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self._within_derivatives(f.squeeze(-1), *self._columns(y, f))

        g, w = self._averages(within, mean, offsets, weights, targets)
        return (gradient + g).unsqueeze(-1), (curvature + w)[..., None, None]

    def _conditional(self, latent: Tensor, *second: Tensor) -> Weibull:
        return Weibull(latent, self._shape(latent), validate_args=False)


class WeibullLikelihood(_WeibullTimes):
    """Accelerated failure times ``T = exp(f) E^(1 / shape)``, E standard exponential; log-concave, closed-form Hessian.

    ``exp(f)`` stretches time; ``exp(f) log(2)^(1 / shape)`` is the median. The hazard grows with time if shape is above 1.
    Targets are times ``(N,)`` if every event was observed, or ``(N, 2)`` with the event indicator in the second column: 1
    observed, 0 right-censored, that is, known to be later than the time. With a third column ``(N, 3)``, 2 is left-censored,
    known to be earlier than the time, and 3 an interval, from the time to that in the third column, which other rows ignore.

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

    Targets are times ``(N,)``, or ``(N, 2)`` or ``(N, 3)`` with event indicators, see ``WeibullLikelihood``.

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


class LogLogisticLikelihood(_MedianTimes):
    """Times ``P(T > t) = 1 / (1 + (t exp(-f))^shape)`` with median ``exp(f)``; log-concave, closed-form Hessian.

    The logarithm of the time is ``f`` plus logistic noise, close to log-normal times. If shape is above 1, the hazard rises at
    first and falls later; otherwise it falls. There is a mean only if shape is above 1.

    Targets are times ``(N,)``, or ``(N, 2)`` or ``(N, 3)`` with event indicators, see ``WeibullLikelihood``.

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

    @property
    def latent_width(self) -> float:  # type: ignore[override]
        """Of the logistic noise."""
        return 1.0 / float(self.shape.detach())

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        # Of an interval, S(a) - S(b) is (1 - S(b)) S(a) times what does not depend on f: 1 - (a / b)^shape.
        shape, log_time, events = self.shape.to(latent.dtype), y.log(), second[0]
        begin, end = self._ends(latent, y, *second)
        density = torch.where(events == OBSERVED, shape.log() - log_time, 0.0)
        if len(second) == 2:
            between = events == INTERVAL
            share = log_mass((shape * _log_ratio(y, second[1], between)).log())
            density = density + torch.where(between, share, 0.0)
        before = torch.where(events == RIGHT, 0.0, logsigmoid(end))
        return density + before + torch.where(events == LEFT, 0.0, logsigmoid(-begin))

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        shape, (begin, end) = self.shape.to(latent.dtype), self._ends(latent, y, *second)
        later, earlier = (second[0] != LEFT).to(latent), (second[0] != RIGHT).to(latent)
        over, left = torch.sigmoid(begin), torch.sigmoid(-end)
        gradient = shape * (later * over - earlier * left)
        return gradient, shape.square() * (later * over * torch.sigmoid(-begin) + earlier * torch.sigmoid(end) * left)

    def _ends(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of being over at the time, and at the end of an interval."""
        shape = self.shape.to(latent.dtype)
        begin = shape * (y.log() - latent)
        if len(second) == 1:
            return begin, begin
        return begin, shape * (torch.where(second[0] == INTERVAL, second[1], y).log() - latent)

    def _conditional(self, latent: Tensor, *second: Tensor) -> LogLogistic:
        return LogLogistic(latent, self.shape.to(latent.dtype), validate_args=False)


class CensoredLogNormalLikelihood(_MedianTimes):
    r"""Times ``P(T > t) = \Phi((f - log t) / \sigma)`` with median ``exp(f)``; log-concave, closed-form Hessian.

    The logarithm of the time is ``f`` plus Gaussian noise: ``LogNormalLikelihood`` for rows some of which are censored. The
    hazard rises at first and falls later.

    Targets are times ``(N,)``, or ``(N, 2)`` or ``(N, 3)`` with event indicators, see ``WeibullLikelihood``.

    Args:
        noise: Initial noise variance of ``log T``; default softplus(0), about 0.69.
        noise_prior: Prior over the noise variance.
        noise_constraint: Constraint on the noise variance; default above 1e-8.

    Examples:
        >>> import torch
        >>> likelihood = CensoredLogNormalLikelihood(noise=0.25)
        >>> y = likelihood.validate_targets(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))  # an event, and none until 1
        >>> [round(value, 4) for value in likelihood.log_density(torch.zeros(2, 1), y).exp().tolist()]
        [0.7979, 0.5]
    """

    noise = ConstrainedParameter()
    """Noise variance of the logarithm of the time ``(1,)``."""

    def __init__(
        self, noise: float | None = None, noise_prior: Prior | None = None, noise_constraint: Interval | None = None
    ) -> None:
        super().__init__()
        type(self).noise.register(self, noise_constraint or GreaterThan(SMALLEST_NOISE), noise_prior, noise)

    @property
    def latent_width(self) -> float:  # type: ignore[override]
        """Of the Gaussian noise."""
        return float(self.noise.detach()) ** 0.5

    def _scale(self, like: Tensor) -> Tensor:
        return self.noise.sqrt().to(like.dtype)

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        events, scale = second[0], self._scale(latent)
        z = (y.log() - latent) / scale
        normal = -0.5 * (z.square() + math.log(2.0 * math.pi)) - scale.log() - y.log()
        found = torch.where(events == OBSERVED, normal, torch.special.log_ndtr(torch.where(events == LEFT, z, -z)))
        if len(second) == 1:
            return found
        between = events == INTERVAL
        width = _log_ratio(y, second[1], between) / scale
        return torch.where(between, interval_slopes(z, width)[0].to(found), found)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        events, scale = second[0], self._scale(latent)
        z, observed = (y.log() - latent) / scale, events == OBSERVED
        sign = torch.where(events == LEFT, -1.0, 1.0).to(z)  # left-censored rows want smaller values
        ratio = inverse_mills(-sign * z)
        slope = torch.where(observed, z, sign * ratio)
        bend = torch.where(observed, 1.0, mills_slope(-sign * z, ratio))
        if len(second) == 2:
            between = events == INTERVAL
            _, *within = interval_slopes(z, _log_ratio(y, second[1], between) / scale)
            slope, bend = (torch.where(between, x.to(z), other) for x, other in zip(within, (slope, bend), strict=True))
        return slope / scale, bend / scale.square()

    def _conditional(self, latent: Tensor, *second: Tensor) -> LogNormal:
        return LogNormal(latent, self._scale(latent), validate_args=False)

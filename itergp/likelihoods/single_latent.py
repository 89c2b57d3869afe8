"""``SingleLatentLikelihood``: what likelihoods with one latent function per row share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Distribution

from itergp.errors import InputError
from itergp.likelihoods.base import Likelihood, latent_marginals
from itergp.likelihoods.mixtures import CountMixture, QuadratureMixture
from itergp.likelihoods.quadrature import node_covariance, trapezoid
from itergp.numerics.blocks import psd_root

_SPACING = 0.25  # of the nodes of a prediction, in standard deviations of the latent value
_WIDTHS = 1.25  # largest spacing in widths of the likelihood: the rule's error is then 1e-5
_MAX_NODES = 2_048
_MAX_VALUES = 2**25


class SingleLatentLikelihood(Likelihood):
    """Base class for one latent function per row: a member says its density, two derivatives and what it is given f.

    A member defines ``_log_density(latent, y)``, ``_derivatives(latent, y)`` and ``_conditional(latent)``, all on tensors
    without a dimension for the latent function, and ``validate_targets``. Targets may have a second column that belongs to
    the observation, such as an exposure; the three methods then take it as a further argument.

    Attributes:
        counts: Whether observations are counts, and the conditional distribution has a float64 ``cdf``.
        second_column: Value of the second column when targets have only one; None if there is no second column.
    """

    counts: ClassVar[bool] = False
    second_column: ClassVar[float | None] = None

    @abstractmethod
    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        """``log p(y | f)``, all of one shape ``(..., N)``."""

    @abstractmethod
    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        """First derivative and curvature, ``(..., N)`` each."""

    @abstractmethod
    def _conditional(self, latent: Tensor, *second: Tensor) -> Distribution:
        """``p(y | f)`` with the batch shape of ``latent``."""

    def _typical(self, latent: Tensor, *second: Tensor) -> Tensor:
        """An observation in the middle of ``p(y | f)``, whose curvature says how narrow the likelihood is."""
        return self._conditional(latent, *second).mean

    # ------------------------------------------------------------ the calculus
    def log_density(self, f: Tensor, targets: Tensor) -> Tensor:
        """``log p(y_n | f_n)``, with all normalising constants."""
        latent = f.squeeze(-1)
        return self._log_density(latent, *self._columns(targets, latent))

    def derivatives(self, f: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and curvature in closed form."""
        latent = f.squeeze(-1)
        gradient, curvature = self._derivatives(latent, *self._columns(targets, latent))
        return gradient.unsqueeze(-1), curvature.expand(latent.shape)[..., None, None]

    def _columns(self, targets: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        targets = targets.to(like.dtype)
        if self.second_column is None:
            return (targets,)
        return targets.unbind(-1) if targets.dim() == 2 else (targets, torch.full_like(targets, self.second_column))

    # ------------------------------------------------------------ expectations
    def _exponential(self, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor] | None:
        """Slopes ``(a, b)`` if ``log p(y | f) = a f - exp(b f + c) + const``, whose expectations have a closed form.

        NaN for ``b`` of targets whose density is of another form.
        """
        return None

    def _closed_form(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Where to evaluate a density with an exponential in place of averaging ``(N, 1)``, and what else there is to know.

        ``E[exp(b f + c)] = exp(b (m + b v / 2) + c)`` for ``f ~ N(m, v)``: gradient and curvature at ``m + b v / 2`` are the
        expected ones. Quadrature instead needs nodes as far out as ``b v``, and misses all of it where v is large.

        Returns:
            Points, what the linear term has too much there ``(N,)``, and which targets have such a density ``(N,)``.
        """
        slopes = self._exponential(*self._columns(targets, mean.squeeze(-1)))
        if slopes is None:
            return None
        linear, exponential = slopes
        known = ~exponential.isnan()
        slope = torch.where(known, exponential, 0.0)  # before a product with it, whose derivative would be NaN
        shift = 0.5 * slope * node_covariance(offsets, weights)[:, 0, 0]
        return mean + shift.unsqueeze(-1), linear * shift, known

    def expected_log_density(self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """``E[log p(y_n | f_n)]`` for each row ``(N,)``: in closed form for exponentials, otherwise by the nodes."""
        closed = self._closed_form(mean, offsets, weights, targets)
        if closed is None:
            return super().expected_log_density(mean, offsets, weights, targets)
        points, excess, known = closed
        value = self.log_density(points, targets) - excess
        if bool(known.all()):
            return value
        return torch.where(known, value, super().expected_log_density(mean, offsets, weights, targets))

    def expected_derivatives(
        self, mean: Tensor, offsets: Tensor, weights: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expected gradient ``(N, 1)`` and curvature ``(N, 1, 1)``: in closed form for exponentials."""
        closed = self._closed_form(mean, offsets, weights, targets)
        if closed is None:
            return super().expected_derivatives(mean, offsets, weights, targets)
        points, _, known = closed
        gradient, curvature = self.derivatives(points, targets)
        if bool(known.all()):
            return gradient, curvature
        others = super().expected_derivatives(mean, offsets, weights, targets)
        return torch.where(known[:, None], gradient, others[0]), torch.where(known[:, None, None], curvature, others[1])

    # -------------------------------------------------------------- predictive
    def forward(self, function_samples: Tensor, *args: Any, **kwargs: Any) -> Distribution:
        """Conditional distribution at latent values ``(..., N)``; keywords as in ``predictive``."""
        second = next((kwargs[name] for name in self.predictive_options if kwargs.get(name) is not None), None)
        if self.second_column is None or not self.predictive_options:
            return self._conditional(function_samples)
        return self._conditional(function_samples, self._second(function_samples, second))

    def predictive(self, mean: Tensor, covariance: Tensor) -> QuadratureMixture:
        """Mixture of the conditional distribution over equidistant nodes, 97 or as many more as narrow ones need."""
        return self._integrate(mean, covariance)

    def _integrate(self, mean: Tensor, covariance: Tensor, *second: Tensor) -> QuadratureMixture:
        latent, weights = self._nodes(mean, covariance, *second)
        components = self._conditional(latent, *(column.unsqueeze(-1) for column in second))
        return (CountMixture if self.counts else QuadratureMixture)(weights, components)

    def _nodes(self, mean: Tensor, covariance: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        """Latent values ``(M, S)`` and weights ``(S,)``, as dense as the narrowest likelihood asks for and memory allows."""
        scale = psd_root(covariance)[..., 0]
        with torch.no_grad():
            centre = mean[..., 0]
            columns = second if second or self.second_column is None else (torch.ones_like(centre),)
            _, curvature = self._derivatives(centre, self._typical(centre, *second), *columns)
            widths = float((scale[..., 0] * curvature.clamp_min(0.0).sqrt()).nan_to_num(posinf=0.0).max())
        most = min(_MAX_NODES, max(1, _MAX_VALUES // mean.shape[0]))
        spacing = max(min(_SPACING, _WIDTHS / max(widths, 1e-6)), 24.0 / most)
        nodes, weights = trapezoid(min(spacing, _SPACING), like=mean)
        return mean + scale * nodes, weights

    def _second(self, like: Tensor, value: Any) -> Tensor:
        """The second column for new rows ``(M,)``: a number for all, or one per row."""
        name = self.predictive_options[0]
        value = self.second_column if value is None else value
        column = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if column.dim() > 1 or (column.dim() == 1 and column.shape[0] != like.shape[-1]):
            raise InputError(
                f"`{name}` must be a number, or one per row with shape ({like.shape[-1]},). Got {tuple(column.shape)}. "
                "Select the same rows of both."
            )
        if not bool((torch.isfinite(column) & (column > 0)).all()):
            raise InputError(f"`{name}` must be positive and finite. Got {column.min().item():g}. Check the column.")
        return column.expand(like.shape[-1:])

    def log_marginal(
        self, observations: Tensor, function_dist: MultivariateNormal, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``log E[p(y_n | f_n)]`` for each row ``(N,)``; targets as for training, with their second column."""
        mean, covariance = latent_marginals(function_dist, self.num_latents)
        return self.predictive_log_density(mean, covariance, self.validate_targets(observations))

    def predictive_log_density(self, mean: Tensor, covariance: Tensor, targets: Tensor) -> Tensor:
        """``log E[p(y_n | f_n)]`` for each row ``(N,)``, the second column of the targets taken into account."""
        y, *second = self._columns(targets, mean)
        latent, weights = self._nodes(mean, covariance, *(second if self.predictive_options else ()))
        density = self._log_density(latent, y.unsqueeze(-1), *(column.unsqueeze(-1) for column in second))
        return torch.logsumexp(density + weights.clamp_min(torch.finfo(weights.dtype).tiny).log(), -1)

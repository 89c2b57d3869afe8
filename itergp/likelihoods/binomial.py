"""Successes among trials."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from itergp.likelihoods.base import Observed
from itergp.likelihoods.distributions import Binomial
from itergp.likelihoods.mixtures import QuadratureMixture
from itergp.likelihoods.single_latent import SingleLatentLikelihood
from itergp.likelihoods.targets import as_floats, check_columns, require_counts, require_inside, whole


class BinomialLikelihood(SingleLatentLikelihood):
    """Number of successes with probability ``1 / (1 + exp(-f))`` in each trial; log-concave, closed-form Hessian.

    Targets are ``(N, 2)`` with successes in the first column and trials in the second, or ``(N,)`` for one trial per row.

    Examples:
        >>> likelihood = BinomialLikelihood()
        >>> y = likelihood.validate_targets(torch.tensor([[3, 4]]))  # three of four
        >>> g, W = likelihood.derivatives(torch.zeros(1, 1), y)
        >>> float(g), float(W)
        (1.0, 1.0)
    """

    observes: ClassVar[Observed] = "count"
    counts: ClassVar[bool] = True
    second_column: ClassVar[float | None] = 1.0
    predictive_options: ClassVar[tuple[str, ...]] = ("num_trials",)

    def validate_targets(self, targets: Tensor) -> Tensor:
        """Successes must be whole numbers from 0 to the number of trials, trials at least 1; returned as floats."""
        name = "BinomialLikelihood"
        check_columns(targets, name, "number of trials")
        successes = targets if targets.dim() == 1 else targets[:, 0]
        trials = torch.ones_like(successes) if targets.dim() == 1 else targets[:, 1]
        require_counts(successes, name)
        whole(trials, name, "whole numbers of trials in the second column")
        remedy = "Rows without trials say nothing: drop them."
        require_inside(trials, trials >= 1, name, "1 trial or more in the second column", remedy)
        remedy = "Check the order of the columns: successes, trials."
        require_inside(
            successes, successes <= trials, name, "no more successes than trials (1 without a second column)", remedy
        )
        return as_floats(targets)

    def predictive(
        self, mean: Tensor, covariance: Tensor, *, num_trials: float | Tensor | None = None
    ) -> QuadratureMixture:
        """Mixture of binomial distributions over quadrature nodes.

        Args:
            mean: Latent means ``(M, 1)``.
            covariance: Latent variances ``(M, 1, 1)``.
            num_trials: Trials of the new rows, a number or ``(M,)``; default 1.
        """
        return self._integrate(mean, covariance, self._second(mean[..., 0], num_trials))

    def _log_density(self, latent: Tensor, y: Tensor, *second: Tensor) -> Tensor:
        (trials,) = second
        ways = torch.lgamma(trials + 1.0) - torch.lgamma(y + 1.0) - torch.lgamma(trials - y + 1.0)
        log_sigmoid = torch.nn.functional.logsigmoid
        return ways + y * log_sigmoid(latent) + (trials - y) * log_sigmoid(-latent)

    def _derivatives(self, latent: Tensor, y: Tensor, *second: Tensor) -> tuple[Tensor, Tensor]:
        (trials,) = second
        success, failure = torch.sigmoid(latent), torch.sigmoid(-latent)
        return y * failure - (trials - y) * success, trials * success * failure

    def _conditional(self, latent: Tensor, *second: Tensor) -> Binomial:
        return Binomial(second[0].expand_as(latent), logits=latent, validate_args=False)

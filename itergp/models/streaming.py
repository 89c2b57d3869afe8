"""Predictions of many rows, batch by batch, at constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from itergp.diagnostics import ProgressBar
from itergp.errors import InputError
from itergp.likelihoods import Likelihood
from itergp.likelihoods.predictive import joinable, joined
from itergp.models.conditioned import Conditioned
from itergp.models.hyperparameters import frozen, kept_tensors
from itergp.models.latent import LatentPosterior, batches, weights_and_actions
from itergp.models.prior_evaluation import HasPrior, fit_grids
from itergp.models.protocol import Model
from itergp.models.threads import turn
from itergp.models.validation import as_inputs, check_test_inputs, like_known
from itergp.operators import default_memory_budget
from itergp.operators.special import has_moving_grid
from itergp.posterior.tempering import remaining_share, share_power, tempered
from itergp.solvers import Solution

_COPIES = 4  # of new inputs: converted, scaled, with their norms, in the order of a product
_MOST_ROWS = 8192  # of a batch: more are no faster, and progress is worth showing


def check_prediction(likelihood: Likelihood, exponent: float, observation: dict[str, Any]) -> float:
    """An exponent of tempering, checked, as are keywords of a prediction.

    Raises:
        InputError: If it is negative, or the likelihood does not know a keyword.
    """
    if "covariance_scale" in observation:
        raise InputError(
            "`covariance_scale` has given way to `tempering`. Got both names or the old one. Pass tempering=0.0 to "
            "integrate the posterior (formerly 1) and tempering=math.inf to plug in its mean (formerly 0)."
        )
    if unknown := sorted(set(observation) - set(likelihood.predictive_options)):
        known = likelihood.predictive_options or "none"
        raise InputError(
            f"Keywords of `predict` must be those of the likelihood: {known} for {type(likelihood).__name__}. "
            f"Got {unknown}. Leave them out."
        )
    if isinstance(exponent, bool) or not isinstance(exponent, (int, float)) or not exponent >= 0.0:
        raise InputError(
            f"`tempering` must be a number, 0 or more. Got {exponent!r}. 0 integrates the posterior, math.inf plugs in its "
            "mean."
        )
    return float(exponent)


def checked_stream(model: HasPrior, x: Any) -> tuple[Any, ...]:
    """Inputs of any kind as ``as_inputs`` gives them, once it is known that they fit; grids without bounds reach to them.

    Args:
        model: Which is to predict.
        x: The inputs.

    Raises:
        InputError: If they do not look like the training inputs.
    """
    inputs, known = as_inputs(x, "inputs"), model.held_data.inputs
    # What is not a tensor is converted batch by batch: one row shows whether it fits.
    given = x if isinstance(x, tuple) else (x,)
    seen = tuple(t if torch.is_tensor(raw) else t[:1] for raw, t in zip(given, inputs, strict=True))
    check_test_inputs(like_known(x, seen, known), known)
    if has_moving_grid(model):
        fit_grids(model, like_known(x, inputs, known))
    return inputs


@dataclass(frozen=True)
class Stream:
    """The latent posterior of a model at many inputs, as an iterator of batches.

    Attributes:
        model: The model, which must not change meanwhile.
        conditioned: Its posterior.
        inputs: Inputs as they were given, ``(M, D)`` each, perhaps of another dtype or in a file.
        batch_size: Rows of a batch; None for as many as the memory budget allows.
        progress: Whether to draw a progress bar.
    """

    model: Model
    conditioned: Conditioned
    inputs: tuple[Tensor, ...]
    batch_size: int | None = None
    progress: bool = False

    @property
    def num_rows(self) -> int:
        """M."""
        return self.inputs[0].shape[0]

    def latents(self, *, covariance: bool) -> Iterator[tuple[slice, LatentPosterior]]:
        """Slices of rows and the latent posterior there; without ``covariance`` only its mean."""
        model = self.model
        solution, operator = self.conditioned.solution, self.conditioned.operator
        blocks = weights_and_actions(solution, operator, covariance=covariance)
        with ProgressBar(enabled=self.progress) as bar:
            bar.begin("predict", unit="rows", total=self.num_rows)
            for rows in self._slices(solution, covariance=covariance):
                part = tuple(x[rows].to(like) for x, like in zip(self.inputs, model.held_data.inputs, strict=True))
                wanted = torch.is_grad_enabled() and any(x.requires_grad for x in part)
                # The weights were found for these hyperparameters, so predictions have no useful derivative in them.
                with turn(), kept_tensors(model), torch.set_grad_enabled(wanted), frozen(model):
                    prior = model.prior_at(part)
                    latent = LatentPosterior.at(prior, operator, solution, covariance=covariance, blocks=blocks)
                yield rows, latent
                bar.advance("predict", rows.stop)

    def marginals(self, tempering: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of rows, latent means ``(m, C)`` and tempered covariances ``(m, C, C)``."""
        integrated = tempering < math.inf
        for rows, latent in self.latents(covariance=integrated):
            mean = latent.mean
            if integrated:
                yield rows, mean, tempered(latent.row_covariance(), latent.prior_variance, tempering)
            else:
                yield rows, mean, mean.new_zeros(*mean.shape, mean.shape[1])

    def tempering_factors(self, tempering: float) -> Tensor:
        """Roots of what tempering multiplies row covariances by ``(M,)``."""
        if tempering == 0.0 or math.isinf(tempering):
            like = self.conditioned.solution.representer_weights
            return like.new_full((self.num_rows,), 0.0 if tempering else 1.0)
        shares = (
            (rows, remaining_share(part.row_covariance(), part.prior_variance))
            for rows, part in self.latents(covariance=True)
        )
        return share_power(gathered(shares, self.num_rows), 0.5 * tempering)

    def predictives(self, tempering: float, observation: dict[str, Any]) -> Iterator[tuple[slice, Distribution]]:
        """Slices of rows and the predictive distribution there."""
        for rows, mean, covariance in self.marginals(tempering):
            yield rows, self._likelihood.predictive(mean, covariance, **of_rows(observation, rows))

    def mean(self) -> Tensor:
        """Latent means ``(M, C)``."""
        return gathered(((rows, latent.mean) for rows, latent in self.latents(covariance=False)), self.num_rows)

    def predictive(self, tempering: float, observation: dict[str, Any]) -> Distribution:
        """The predictive distribution of all rows.

        With one latent function, moments of all rows are small; with several, their covariances need not be: what is kept
        of a batch are then the parameters of its predictive distribution, where those say it all.
        """
        return predictive_of(self._likelihood, self.marginals(tempering), observation)

    # ------------------------------------------------------------------ inside
    @property
    def _likelihood(self) -> Likelihood:
        return self.conditioned.observations.likelihood

    def _slices(self, solution: Solution, *, covariance: bool) -> Iterator[slice]:
        model, rank = self.model, solution.rank if covariance else 0
        device, latents = solution.representer_weights.device, solution.representer_weights.shape[1]
        operator, size = self.conditioned.operator, self.conditioned.observations.num_rows
        if self.batch_size is not None:
            return batches(self.num_rows, 1, 8 * self.batch_size)
        budget = model.memory_budget or default_memory_budget(device)
        if solution.rows.sharded:  # as many batches in every process
            budget = int(solution.rows.broadcast(torch.tensor(budget // solution.rows.num_processes, device=device)))
        local = 0 if solution.local is None or not covariance else solution.local.numbers_per_input
        across = size // 64 if operator.evaluates_matrix else 0
        own = _COPIES * sum(x.shape[-1] for x in self.inputs)
        per_row = latents * (2 * rank + latents) + local + across + own
        most = max(_MOST_ROWS, operator.cross_overhead)
        return batches(self.num_rows, per_row, min(budget // 4, 8 * per_row * most))


def predictive_of(
    likelihood: Likelihood, marginals: Iterable[tuple[slice, Tensor, Tensor]], observation: dict[str, Any]
) -> Distribution:
    """One predictive distribution from batches of latent means ``(m, C)`` and covariances ``(m, C, C)``.

    Args:
        likelihood: Whose predictions.
        marginals: The batches in order, each with its rows.
        observation: What the likelihood wants to know about rows, a number or ``(M,)``.
    """
    parts, kept = [], []
    for rows, mean, covariance in marginals:
        if mean.shape[1] > 1:
            part = likelihood.predictive(mean, covariance, **of_rows(observation, rows))
            if joinable(part):
                parts.append(part)
                continue
        kept.append((mean, covariance))
    if parts:
        return joined(parts)
    return likelihood.predictive(*(torch.cat(column) for column in zip(*kept, strict=True)), **observation)


def of_rows(observation: dict[str, Any], rows: slice) -> dict[str, Any]:
    """What is known of some rows: a number holds for all."""
    return {n: v[rows] if torch.is_tensor(v) and v.dim() > 0 and v.numel() > 1 else v for n, v in observation.items()}


def gathered(parts: Iterator[tuple[slice, Tensor]], num_rows: int) -> Tensor:
    """Parts of rows as one tensor, without a second copy unless derivatives are wanted."""
    whole: Tensor | None = None
    tracked = []
    for rows, part in parts:
        if part.requires_grad:
            tracked.append(part)
            continue
        whole = part.new_empty(num_rows, *part.shape[1:]) if whole is None else whole
        whole[rows] = part
    if tracked:
        return torch.cat(tracked)
    assert whole is not None
    return whole

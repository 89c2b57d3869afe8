"""Which predictive distribution held-out rows prefer: Laplace or variational, and how tempered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from itergp.checks import require_positive
from itergp.diagnostics.metrics import Reliability, class_probabilities, reliability
from itergp.learning.held_out import held_out_splits, num_weighted, quarters
from itergp.learning.judging import approximation_of
from itergp.learning.output_scale import raise_output_scales
from itergp.learning.predictives import (
    COMPARED,
    LEAD,
    Candidates,
    Choice,
    humblest,
    joined,
    lead_of,
    marginals,
    of_one_approximation,
)
from itergp.likelihoods import Observations
from itergp.models import NetworkGP, NonConjugateGP
from itergp.models.network_data import NetworkData
from itergp.objectives import NEVER, Deadline, OutOfTimeError
from itergp.posterior.tempering import tempered
from itergp.solvers import APPROXIMATIONS

_TELLING = 100  # held-out rows by which an approximation that is behind is told from one that is ahead
_ENOUGH = 2000  # held-out rows that choose; of many latent functions fewer, as many as take the time
# With several latent functions, share of all rows that a variational posterior must be compared with to be a candidate: a
# covariance of the same rank says less of more rows, and the mean follows it. (penbased, 1,500 of 8,794 rows: test NLL 0.065,
# and 0.028 of the mode plugged in.)
_TRANSFERS = 0.6
# Rows to draw, at most, and latent values, rows times functions: with a variational posterior, and where only Laplace's is a
# candidate. Of fewer rows than predictions condition on, means are worse and more is left of the variance.
_MOST_ROWS = 8000
_VALUES, _LAPLACE_VALUES = 20_000, 80_000
_LEAST_ROWS = 1000


@dataclass(frozen=True)
class HeldOutDensities:
    """What a model said about rows that it was not conditioned on, its hyperparameters those of all rows.

    Attributes:
        rows: Their numbers ``(M,)``.
        log_densities: Log-densities of their targets ``(M,)``, in nats and the units of the model, float64.
    """

    rows: Tensor
    log_densities: Tensor


@dataclass(frozen=True)
class Calibration:
    """The predictive distribution that was chosen on held-out rows, and what it was chosen from.

    Attributes:
        approximation: ``"laplace"`` or ``"variational"``.
        tempering: Exponent, 0 for the posterior itself.
        log_densities: Mean held-out log-density by approximation and exponent; an infinite exponent is the plugged-in mean,
            which is shown and not chosen: it does not know what it does not know.
        standard_error: Of the difference of means between the choice and the best candidate; 0 if that was chosen.
        num_held_out: Rows that were held out.
        reliability: Of the chosen class probabilities on those rows, with the expected calibration error; None for
            likelihoods without classes.
        held_out: Log-densities of those rows by the choice, or None.
    """

    approximation: str
    tempering: float
    log_densities: dict[Choice, float] = field(repr=False)
    standard_error: float
    num_held_out: int
    reliability: Reliability | None = field(repr=False)
    held_out: HeldOutDensities | None = field(default=None, repr=False)

    @property
    def expected_calibration_error(self) -> float | None:
        """Of the chosen class probabilities on the held-out rows; None for likelihoods without classes."""
        return None if self.reliability is None else self.reliability.expected_calibration_error


def calibrate_predictions(
    model: NonConjugateGP,
    *,
    num_rows: int | None = None,
    seed: int = 0,
    deadline: Deadline = NEVER,
    raise_scales: bool = False,
) -> Calibration:
    """Compares predictive distributions on rows that were held out of the posterior, at the model's hyperparameters.

    A quarter of the rows drawn is held out, up to 2,000 rows, or, of few rows, some or all quarters in turn. A variational
    posterior is chosen if its best exponent is better than Laplace's best by a standard error; one that is behind on the first
    of them, or of several latent functions not that far ahead, is dropped before the others. Of the exponents that are within
    one standard error of the best, the humblest is chosen: that which leaves most latent variance. (A difference of 0.2 % of
    the log-density is small whatever its standard error, one of 0.5 % is not.) With several latent functions and many more rows
    than are drawn, only Laplace's posterior is a candidate, and with Gaussian noise, where both are the same.

    Args:
        model: The model.
        num_rows: Rows to draw, at most. Default: up to 8,000, fewer of several latent functions.
        seed: Of the draw.
        deadline: When to choose by the quarters, and between the approximations, that are known by then.
        raise_scales: Whether to multiply the output scales of the model, of one latent function, as far as the rows held out
            prefer it, if they prefer the variational posterior at all.

    Raises:
        InputError: If fewer than two rows can be drawn.
        OutOfTimeError: If nothing is known by then.
    """
    require_positive("num_rows", num_rows, integer=True)
    observations = model.observations
    splits = quarters(observations, num_rows=num_rows or _rows_to_draw(observations), seed=seed)
    with torch.no_grad():
        approximations = _approximations(observations, *(rows.numel() for rows in splits[0]))
        parts = _in_time(model, splits, approximations, deadline, raise_scales)
        rows = torch.cat([held_out for _, held_out in splits[: len(parts)]])
        densities, humility = joined(parts)
        chosen, error = humblest(*of_one_approximation(densities, humility))
        drawn = sum(rows.numel() for rows in splits[0])
        if observations.likelihood.num_latents > 1 and drawn < num_weighted(observations):
            chosen = chosen[0], _sharper(chosen[1])
        mean, covariance, variance = (torch.cat([part.moments[chosen[0]][i] for part in parts]) for i in range(3))
        held_out, left = observations.take(rows), tempered(covariance, variance, chosen[1])
        curve = _reliability(held_out, held_out.likelihood.predictive(mean, left))
        density = held_out.predictive_log_density(mean, left).double()
    means = {key: float(value.mean()) for key, value in densities.items()}
    return Calibration(*chosen, means, error, held_out.num_rows, curve, HeldOutDensities(rows, density))


def _sharper(exponent: float) -> float:
    """The next exponent.

    With several latent functions the same rank leaves more of the variance of more rows than were drawn, and to take as much of
    it away asks for more (penbased, 6,000 and 8,794 rows conditioned on: at 512 the test log-density is 1 to 2 % behind the
    plugged-in mean, and on held-out rows none).
    """
    return COMPARED[min(COMPARED.index(exponent) + 1, len(COMPARED) - 1)]


def _approximations(observations: Observations, conditioned: int, held_out: int) -> tuple[str, ...]:
    """Which are candidates, by the numbers of rows."""
    likelihood = observations.likelihood
    if likelihood.quadratic:  # both are the same
        return ("laplace",)
    if approximation_of(likelihood) == "variational":  # a mode is what meets its targets, or sits on kinks
        return ("variational",)
    if likelihood.num_latents == 1:
        return APPROXIMATIONS
    cheap = conditioned + held_out <= _affordable(likelihood.num_latents, _VALUES)
    return APPROXIMATIONS if cheap and conditioned >= _TRANSFERS * observations.num_rows else ("laplace",)


def _rows_to_draw(observations: Observations) -> int:
    """As many rows as can be conditioned on in a small part of the time that learning takes."""
    latents = observations.likelihood.num_latents
    drawn = _affordable(latents, _VALUES)
    held_out = min(drawn, observations.num_rows) // 4
    if "variational" in _approximations(observations, min(drawn, observations.num_rows) - held_out, held_out):
        return drawn
    return _affordable(latents, _LAPLACE_VALUES)


def _affordable(latents: int, values: int) -> int:
    """Rows of so many latent values."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, values // latents))


def judge_predictions(
    model: NonConjugateGP, *, num_rows: int, seed: int = 0, deadline: Deadline = NEVER
) -> HeldOutDensities:
    """What the model's predictive distribution says about rows that are held out of the posterior.

    Args:
        model: The model.
        num_rows: Rows to draw, of which a quarter is held out, or, of few, each quarter in turn.
        seed: Of the draw.
        deadline: When to give up.

    Raises:
        OutOfTimeError: If that is past.
    """
    both = model.approximation == "variational" and approximation_of(model.observations.likelihood) == "laplace"
    kinds = ("laplace", "variational") if both else (model.approximation,)
    rows, densities = [], []
    with torch.no_grad():
        prior, observations = model.prior_at(), model.observations
        for train, held_out in held_out_splits(observations, num_rows=num_rows, seed=seed):
            found = marginals(model, prior, train, held_out, kinds, deadline)
            mean, covariance, variance = found.get(model.approximation, found[kinds[0]])
            left = tempered(covariance, variance, model.tempering)
            rows.append(held_out)
            densities.append(observations.take(held_out).predictive_log_density(mean, left).double())
    return HeldOutDensities(torch.cat(rows), torch.cat(densities))


def calibrate_network(model: NetworkGP, x: Any, y: Any) -> Calibration:
    """Chooses how predictions of a network are tempered, on rows that it was not trained on, and sets ``model.tempering``.

    The choice is as in ``calibrate_predictions``: the humblest of the exponents within one standard error of the best.

    Args:
        model: The network with its posterior.
        x: Inputs of the rows, as the network takes them.
        y: Their targets ``(M,)``.

    Returns:
        What was compared, and the choice.

    Raises:
        InputError: If inputs or targets are not those of the model.
    """
    data = NetworkData.of(x, y, None, missing_targets=False)
    rows, held_out = data.whole(model.calculus, model.linearisation.parameters()[0])
    with torch.no_grad():
        if model.draws_functions:
            part = Candidates.by_functions(model, rows, held_out)
        else:
            part = Candidates.of(held_out, {"laplace": model.latent_moments(rows)})
        densities, humility = joined([part])
        chosen, error = humblest(densities, humility)
        if part.moments:
            mean, covariance, variance = part.moments["laplace"]
            predictive = held_out.likelihood.predictive(mean, tempered(covariance, variance, chosen[1]))
        else:
            predictive = model.predict(rows, tempering=chosen[1])
        curve = _reliability(held_out, predictive)
    model.tempering = chosen[1]
    means = {key: float(value.mean()) for key, value in densities.items()}
    return Calibration(*chosen, means, error, held_out.num_rows, curve)


def _in_time(
    model: NonConjugateGP,
    splits: list[tuple[Tensor, Tensor]],
    approximations: tuple[str, ...],
    deadline: Deadline,
    raise_scales: bool,
) -> list[Candidates]:
    """As many of the splits, in their order, as say enough and there is time for; the first of them at least.

    A variational posterior, the dearer one, would have to end ahead by a standard error. One that is behind is not looked at
    again, and with several latent functions, whose rounds take 20 to 40 times as long as the mode (digits), one that is not
    that far ahead. (Of few rows it may be a standard error behind.) Where it ends ahead, output scales may be raised for it.

    Raises:
        OutOfTimeError: If there is no time for one.
    """
    parts: list[Candidates] = []
    latents = model.observations.likelihood.num_latents
    judged, enough = 0, min(_ENOUGH, _VALUES // latents)
    least = 0.0 if latents == 1 else LEAD  # of a variational posterior's lead
    for split in splits:
        try:
            parts.append(_compared(model, split, approximations, deadline))
        except OutOfTimeError:
            if not parts:
                raise
            break
        judged += split[1].numel()
        lead = lead_of(joined(parts)[0])
        if deadline.over or judged >= enough:
            break
        approximations = tuple(one for one in approximations if one in parts[-1].moments)
        if lead is not None and lead < (least if judged >= _TELLING else -LEAD):
            approximations = ("laplace",)
    if raise_scales and lead is not None and lead > 0.0:
        return raise_output_scales(
            model, parts, lambda number: _compared(model, splits[number], ("variational",), deadline)
        )
    return parts


def _compared(
    model: NonConjugateGP, split: tuple[Tensor, Tensor], approximations: tuple[str, ...], deadline: Deadline
) -> Candidates:
    """What is known of the rows held out of a split, at the present hyperparameters.

    Raises:
        OutOfTimeError: If there is no time for the first of the approximations.
    """
    moments = marginals(model, model.prior_at(), *split, approximations, deadline)
    return Candidates.of(model.observations.take(split[1]), moments)


def _reliability(observations: Observations, predictive: Distribution) -> Reliability | None:
    probs = getattr(predictive, "probs", None)
    if not torch.is_tensor(probs):
        return None
    return reliability(class_probabilities(probs), observations.targets.long())

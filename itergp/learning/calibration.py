"""Which predictive distribution held-out rows prefer: Laplace or variational, and how tempered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from itergp.diagnostics.metrics import Reliability, class_probabilities, reliability
from itergp.learning.held_out import held_out_splits
from itergp.likelihoods import Observations
from itergp.models import LatentPosterior, NetworkGP, NonConjugateGP
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.models.network_data import NetworkData
from itergp.objectives import NEVER, Deadline, OutOfTimeError
from itergp.operators import Prior
from itergp.posterior.tempering import tempered
from itergp.solvers import APPROXIMATIONS, Reason, Solution, solve

Choice = tuple[str, float]  # approximation and exponent of tempering

EXPONENTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
# Candidates besides, until one is all but the plugged-in mean where the data say anything (and the prior where they do not): of
# many classes, most are excluded at any input, and keep nearly all of their variance.
SHARPER = (512.0, 2048.0, 8192.0, 32768.0)
# Shares of the log-density that humility may cost: that much in any case, and as much as that if a standard error allows it.
_INVISIBLE, _TOLERANCE = 0.003, 0.01
# With several latent functions, share of all rows that a variational posterior must be compared with to be a candidate: a
# covariance of the same rank says less of more rows, and the mean follows it. (penbased, 1,500 of 8,794 rows: test NLL 0.065,
# and 0.028 of the mode plugged in.)
_TRANSFERS = 0.6
_SAME = 0.001  # share of the log-density by which a sharp candidate may differ from the plugged-in mean


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
    model: NonConjugateGP, *, num_rows: int, seed: int = 0, deadline: Deadline = NEVER
) -> Calibration:
    """Compares predictive distributions on rows that were held out of the posterior, at the model's hyperparameters.

    A quarter of the rows drawn is held out once, or, of few rows, each quarter in turn. Of the candidates that are within one
    standard error of the best, the humblest is chosen: that which leaves most latent variance. (A difference of 0.3 % of the
    log-density is small whatever its standard error, one of 1 % is not.) With several latent functions and many more rows than
    are drawn, only Laplace's posterior is a candidate.

    Args:
        model: The model.
        num_rows: Rows to draw.
        seed: Of the draw.
        deadline: When to choose by the quarters, and between the approximations, that are known by then.

    Raises:
        OutOfTimeError: If nothing is.
    """
    observations = model.observations
    splits = held_out_splits(observations, num_rows=num_rows, seed=seed)
    with torch.no_grad():
        prior = model.prior_at()
        several, compared = observations.likelihood.num_latents > 1, splits[0][0].numel()
        few = several and compared < _TRANSFERS * observations.num_rows
        approximations: tuple[str, ...] = APPROXIMATIONS
        if few and not observations.likelihood.quadratic:
            approximations = ("laplace",)
        parts = _in_time(model, prior, splits, approximations, deadline)
        splits = splits[: len(parts)]
        # The mode of a density with kinks may not be found: it is no candidate beside a posterior that is.
        approximations = tuple(one for one in approximations if all(one in part for part in parts))
        held_out = observations.take(torch.cat([rows for _, rows in splits]))
        densities: dict[Choice, Tensor] = {}
        humility: dict[Choice, float] = {}
        for approximation in approximations:
            moments = tuple(torch.cat([part[approximation][i] for part in parts]) for i in range(3))
            _compare(approximation, held_out, moments, densities, humility)
        chosen, error = humblest(densities, humility)
        mean, covariance, variance = (torch.cat([part[chosen[0]][i] for part in parts]) for i in range(3))
        curve = _reliability(held_out, mean, tempered(covariance, variance, chosen[1]))
    means = {key: float(value.mean()) for key, value in densities.items()}
    judged = HeldOutDensities(torch.cat([rows for _, rows in splits]), densities[chosen])
    return Calibration(*chosen, means, error, held_out.num_rows, curve, judged)


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
    kinds = ("laplace",) if model.approximation == "laplace" else ("laplace", "variational")
    rows, densities = [], []
    with torch.no_grad():
        prior, observations = model.prior_at(), model.observations
        for train, held_out in held_out_splits(observations, num_rows=num_rows, seed=seed):
            found = _marginals(model, prior, train, held_out, kinds, deadline)
            mean, covariance, variance = found.get(model.approximation, found["laplace"])
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
    densities: dict[Choice, Tensor] = {}
    humility: dict[Choice, float] = {}
    with torch.no_grad():
        if model.draws_functions:
            _compare_drawn(model, rows, held_out, densities, humility)
            chosen, error = humblest(densities, humility)
            curve = _reliability_of(held_out, model.predict(rows, tempering=chosen[1]))
        else:
            moments = model.latent_moments(rows)
            _compare("laplace", held_out, moments, densities, humility)
            chosen, error = humblest(densities, humility)
            curve = _reliability(held_out, moments[0], tempered(moments[1], moments[2], chosen[1]))
    model.tempering = chosen[1]
    means = {key: float(value.mean()) for key, value in densities.items()}
    return Calibration(*chosen, means, error, held_out.num_rows, curve)


def _compare(
    approximation: str,
    held_out: Observations,
    moments: tuple[Tensor, ...],
    densities: dict[Choice, Tensor],
    humility: dict[Choice, float],
) -> None:
    """Log-densities of held-out rows by the exponent of tempering, and the share of the prior variance that each leaves."""
    mean, covariance, variance = moments
    plugged_in = held_out.predictive_log_density(mean, torch.zeros_like(covariance)).double()
    densities[approximation, math.inf], limit = plugged_in, float(plugged_in.mean())
    for exponent in (*EXPONENTS, *SHARPER):
        left = tempered(covariance, variance, exponent)
        density = held_out.predictive_log_density(mean, left).double()
        densities[approximation, exponent] = density
        shares = left.diagonal(dim1=-2, dim2=-1) / variance
        humility[approximation, exponent] = float(shares.double().mean())
        if exponent >= EXPONENTS[-1] and abs(float(density.mean()) - limit) <= _SAME * abs(limit):
            break


def _compare_drawn(
    model: NetworkGP,
    rows: Any,
    held_out: Observations,
    densities: dict[Choice, Tensor],
    humility: dict[Choice, float],
) -> None:
    """What ``_compare`` finds, of many classes, by functions that are drawn once for all exponents."""
    exponents = (*EXPONENTS, *SHARPER, math.inf)
    found, share = model.tempered_log_densities(rows, held_out.targets.long(), exponents)
    densities["laplace", math.inf] = found[-1]
    limit = float(found[-1].mean())
    for exponent, density in zip(exponents[:-1], found[:-1], strict=True):
        densities["laplace", exponent] = density
        humility["laplace", exponent] = float(share.pow(exponent + 1.0).mean())
        if exponent >= EXPONENTS[-1] and abs(float(density.mean()) - limit) <= _SAME * abs(limit):
            break


def humblest(
    densities: dict[Choice, Tensor], humility: dict[Choice, float], most: float = _TOLERANCE
) -> tuple[Choice, float]:
    """The candidate that leaves most variance among those no worse than the best, and the standard error of their difference.

    Args:
        densities: Log-densities of the held-out rows ``(M,)`` by candidate.
        humility: Share of the prior variance that each candidate leaves.
        most: Share of the best's log-density that is too much to give up, whatever its standard error.
    """
    candidates = {key: value for key, value in densities.items() if key[1] < math.inf}
    means = {key: float(value.mean()) for key, value in candidates.items()}
    best = max(means, key=lambda key: means[key] if math.isfinite(means[key]) else -math.inf)
    least, most = _INVISIBLE * abs(means[best]), most * abs(means[best])
    near, errors = [best], {best: 0.0}
    for key, value in candidates.items():
        difference = candidates[best] - value
        error = float(difference.std(correction=0)) / math.sqrt(len(difference))
        if key != best and float(difference.mean()) <= min(max(error, least), most):
            near.append(key)
            errors[key] = error
    chosen = max(near, key=lambda key: humility[key])
    return chosen, errors[chosen]


def _in_time(
    model: NonConjugateGP,
    prior: Prior,
    splits: list[tuple[Tensor, Tensor]],
    approximations: tuple[str, ...],
    deadline: Deadline,
) -> list[dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """``_marginals`` of the splits that there is time for, in their order.

    Raises:
        OutOfTimeError: If there are none.
    """
    parts: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = []
    for split in splits:
        try:
            parts.append(_marginals(model, prior, *split, approximations, deadline))
        except OutOfTimeError:
            if not parts:
                raise
            break
        if deadline.over:
            break
        approximations = tuple(one for one in approximations if one in parts[-1])
    return parts


def _marginals(
    model: NonConjugateGP,
    prior: Prior,
    train: Tensor,
    held_out: Tensor,
    approximations: tuple[str, ...],
    deadline: Deadline,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Latent means, covariances and prior variances of held-out rows by approximation, of those that were found in time.

    The first is always among them.
    """
    deadline.check()
    part, seen = share_latents(distinct_rows(model, prior, train), prior.take(train), model.observations.take(train))
    validation = prior.take(held_out)
    operator = model.make_operator(part, seen)
    results: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    solution: Solution | None = None
    for approximation in sorted(approximations):  # the Laplace mode is where the variational solve starts
        solution = solve(
            operator,
            part.mean,
            seen,
            model.solver,
            approximation=approximation,
            warm_start=solution,
            time_limit=deadline.left(),
        )
        if deadline.over and results:
            break
        deadline.check()
        if approximation != approximations[0] and solution.status.reason is Reason.PRECISION:
            continue
        latent = LatentPosterior.at(validation, operator, solution)
        results[approximation] = latent.mean, latent.row_covariance(), latent.prior_variance
    return results


def _reliability(observations: Observations, mean: Tensor, covariance: Tensor) -> Reliability | None:
    return _reliability_of(observations, observations.likelihood.predictive(mean, covariance))


def _reliability_of(observations: Observations, predictive: Distribution) -> Reliability | None:
    probs = getattr(predictive, "probs", None)
    if not torch.is_tensor(probs):
        return None
    return reliability(class_probabilities(probs), observations.targets.long())

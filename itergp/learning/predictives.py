"""Predictive distributions that compete on held-out rows: two approximations, and how sharply each is tempered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itergp.likelihoods import Observations
from itergp.models import LatentPosterior, NetworkGP, NonConjugateGP
from itergp.models.distinct_rows import distinct_rows, share_latents
from itergp.objectives import Deadline
from itergp.operators import Prior
from itergp.posterior.tempering import EXPONENTS, tempered
from itergp.solvers import Reason, Solution, solve

Choice = tuple[str, float]  # approximation and exponent of tempering

# Exponents that are compared: the usual ones, and sharper ones until one is all but the plugged-in mean where the data say
# anything (and the prior where they do not): of many classes, most are excluded at any input, and keep nearly all of their
# variance.
COMPARED = (*EXPONENTS, 512.0, 2048.0, 8192.0, 32768.0)
# Shares of the log-density that humility may cost: that much in any case, and as much as that if a standard error allows it.
_INVISIBLE, _TOLERANCE = 0.002, 0.005
LEAD = 1.0  # standard errors by which a variational posterior must be better than Laplace's
_SAME = 0.001  # share of the log-density by which a sharp candidate may differ from the plugged-in mean


@dataclass(frozen=True)
class Candidates:
    """What is known of some held-out rows.

    Attributes:
        moments: Latent means ``(m, C)``, covariances ``(m, C, C)`` and prior variances ``(m, C)`` by approximation; none of
            many classes.
        densities: Log-densities ``(m,)`` by candidate, and by approximation with infinity for its mean plugged in.
        shares: Shares of the prior variance that a candidate leaves ``(m,)``.
    """

    moments: Mapping[str, tuple[Tensor, ...]]
    densities: dict[Choice, Tensor]
    shares: dict[Choice, Tensor]

    @classmethod
    def of(cls, held_out: Observations, moments: Mapping[str, tuple[Tensor, ...]]) -> Candidates:
        """Compares exponents, of each approximation as many as it takes to be all but the plugged-in mean."""
        part = cls(moments, {}, {})
        for approximation, (mean, covariance, variance) in moments.items():
            plugged_in = held_out.predictive_log_density(mean, torch.zeros_like(covariance)).double()
            part.densities[approximation, math.inf] = plugged_in
            for exponent in COMPARED:
                left = tempered(covariance, variance, exponent)
                share = (left.diagonal(dim1=-2, dim2=-1) / variance).double().mean(-1)
                density = held_out.predictive_log_density(mean, left).double()
                if part._add((approximation, exponent), density, share):
                    break
        return part

    @classmethod
    def by_functions(cls, model: NetworkGP, rows: Any, held_out: Observations) -> Candidates:
        """The same of many classes, by functions that are drawn once for all exponents."""
        exponents = (*COMPARED, math.inf)
        found, share = model.tempered_log_densities(rows, held_out.targets.long(), exponents)
        part = cls({}, {("laplace", math.inf): found[-1]}, {})
        for exponent, density in zip(exponents[:-1], found[:-1], strict=True):
            if part._add(("laplace", exponent), density, share.pow(exponent + 1.0)):
                break
        return part

    def _add(self, candidate: Choice, density: Tensor, share: Tensor) -> bool:
        """Adds a candidate, and says whether it is all but the plugged-in mean."""
        self.densities[candidate], self.shares[candidate] = density, share
        limit = float(self.densities[candidate[0], math.inf].mean())
        return candidate[1] >= EXPONENTS[-1] and abs(float(density.mean()) - limit) <= _SAME * abs(limit)

    def density(self, candidate: Choice) -> Tensor:
        """Of a candidate, or, beyond those that were compared, of the plugged-in mean."""
        return self.densities.get(candidate, self.densities[candidate[0], math.inf])

    def share(self, candidate: Choice) -> Tensor:
        """What a candidate leaves of the prior variance; nothing beyond those that were compared."""
        return self.shares.get(candidate, torch.zeros_like(self.density(candidate)))


def joined(parts: list[Candidates]) -> tuple[dict[Choice, Tensor], dict[Choice, float]]:
    """Log-densities of all held-out rows by candidate, and the mean share of the prior variance that each leaves.

    Of approximations that are known for all of them. The mode of a density with kinks may not be found: it is no candidate
    beside a posterior that is.
    """
    known = set.intersection(*({approximation for approximation, _ in part.densities} for part in parts))
    candidates = {key: None for part in parts for key in part.densities if key[0] in known}
    densities = {key: torch.cat([part.density(key) for part in parts]) for key in candidates}
    finite = [key for key in candidates if key[1] < math.inf]
    return densities, {key: float(torch.cat([part.share(key) for part in parts]).mean()) for key in finite}


def best_density(parts: list[Candidates]) -> Tensor:
    """Log-densities ``(M,)`` of all held-out rows by the best of the candidates, the plugged-in mean aside."""
    candidates = (value for (_, exponent), value in joined(parts)[0].items() if exponent < math.inf)
    return max(candidates, key=lambda value: float(value.mean()))


def lead_of(densities: dict[Choice, Tensor]) -> float | None:
    """By how many standard errors the best variational candidate is ahead of Laplace's; None if there is only one of them."""
    best: dict[str, Tensor] = {}
    for (approximation, exponent), value in densities.items():
        mean = float(value.mean())
        known = best.get(approximation)
        if exponent < math.inf and math.isfinite(mean) and (known is None or mean > float(known.mean())):
            best[approximation] = value
    if len(best) < 2:
        return None
    difference = best["variational"] - best["laplace"]
    return float(difference.mean()) / max(standard_error(difference), 1e-300)


def standard_error(difference: Tensor) -> float:
    """Of the mean of differences ``(M,)``, which nobody knows of one."""
    return float(difference.std(correction=0)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf


def of_one_approximation(
    densities: dict[Choice, Tensor], humility: dict[Choice, float]
) -> tuple[dict[Choice, Tensor], dict[Choice, float]]:
    """The candidates of Laplace's approximation, or, if the best of those is a standard error ahead, of the variational one.

    Learning tunes the mode that is plugged in, which Laplace's come to as exponents grow. Variational means lie further out:
    where much of their variance is taken away, what few rows pay for that is easily missed among those held out.
    """
    lead = lead_of(densities)
    if lead is None:
        return densities, humility
    kept = "variational" if lead > LEAD else "laplace"
    of_kept = {key: value for key, value in densities.items() if key[0] == kept}
    return of_kept, {key: value for key, value in humility.items() if key[0] == kept}


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
        error = standard_error(difference)
        if key != best and float(difference.mean()) <= min(max(error, least), most):
            near.append(key)
            errors[key] = error
    chosen = max(near, key=lambda key: humility[key])
    return chosen, errors[chosen]


def marginals(
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

"""What real, positive and shared targets are to a model: their support, their units, where a prior mean starts, and moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itergp.errors import InputError
from itergp.sklearn.noise import NOISES, POSITIVES, SHARES, competing
from itergp.sklearn.scaling import Scaling

Array = NDArray[np.float64]

_SKEWED = (
    1.0  # skewness, that of an exponential distribution is 2, from which on positive targets may be multiplicative
)
_HERMITE_NODES, _HERMITE_TERMS = 100, 60


def competing_responses(name: Any, *, skewed: bool) -> dict[str, Callable[[], Any]]:
    """Likelihoods that compete by the name of one, or by ``"auto"``, simple ones first.

    Args:
        name: As in ``GPRegressor``; a hyphen is an underscore.
        skewed: Whether targets are positive and skewed, so that those of positive targets take part.

    Raises:
        InputError: If there is none of that name.
    """
    name = name.replace("-", "_") if isinstance(name, str) else name
    if name != "auto":
        return competing({**NOISES, **POSITIVES, **SHARES}, name, "likelihood")
    first = dict(list(NOISES.items())[:1])
    return competing({**first, **(POSITIVES if skewed else {}), **NOISES}, name, "likelihood")


def link_of(name: str) -> str:
    """How the mean of an observation depends on the latent function: ``"identity"``, ``"log"`` or ``"logit"``."""
    return "log" if name in POSITIVES else "logit" if name in SHARES else "identity"


def are_skewed(y: Array, weights: Array) -> bool:
    """Whether targets ``(N,)`` or ``(N, C)`` are positive, every output of them with a long tail of large values."""
    columns = y.reshape(len(y), -1)
    if len(columns) < 2 or not (columns > 0.0).all():
        return False
    around = Scaling.learn(columns, weights).transform(columns)
    return bool((np.average(around**3, axis=0, weights=weights) > _SKEWED).all())


def check_support(y: Array, name: str) -> None:
    """Targets must be among those that a likelihood knows.

    Args:
        y: Targets ``(N,)`` or ``(N, C)``, finite.
        name: Of the likelihood.

    Raises:
        InputError: If one is not, naming its row and value.
    """
    wrong, wanted, remedy = np.zeros_like(y, dtype=bool), "", ""
    if name in POSITIVES:
        wrong, wanted = y <= 0.0, "positive"
        remedy = 'Drop those rows, add the resolution of the measurement to zeros, or pass likelihood="gaussian".'
    elif name == "beta":
        wrong, wanted = (y <= 0.0) | (y >= 1.0), "strictly between 0 and 1"
        remedy = (
            'Divide percentages by 100, move exact zeros and ones inside, or pass counts with likelihood="binomial".'
        )
    elif name == "binomial":
        wrong, wanted = (y < 0.0) | (y != np.floor(y)), "numbers of successes, whole and 0 or more,"
        remedy = 'Pass the successes as `y` and the trials as `trials`, or shares with likelihood="beta".'
    if wrong.any():
        row = int(np.flatnonzero(wrong.reshape(len(y), -1).any(1))[0])
        value = y[row].flat[np.flatnonzero(wrong[row])[0]] if y.ndim > 1 else y[row]
        count = int(wrong.reshape(len(y), -1).any(1).sum())
        raise InputError(
            f'`y` must be {wanted} for likelihood="{name}". Got {value:g} in row {row}, and so in {count} of {len(y)} row(s). '
            f"{remedy}"
        )


def check_trials(successes: Array, trials: Any) -> Array:
    """Numbers of trials ``(N,)``, each a whole number, not fewer than the successes ``(N,)``.

    Raises:
        InputError: If they are not, naming a row.
    """
    try:
        given = np.asarray(1.0 if trials is None else trials, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`trials` must be numbers. Got {type(trials).__name__}: {error}. Convert it to int."
        ) from error
    given = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if given.shape not in ((), (len(successes),)):
        raise InputError(
            f"`trials` must be a number, or one per row with shape ({len(successes)},). Got shape {given.shape}. Select the "
            "same rows of both."
        )
    values = np.broadcast_to(given, (len(successes),)).copy()
    wrong = ~(np.isfinite(values) & (values >= np.maximum(successes, 1.0)) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"`trials` must be whole numbers, 1 or more, and no fewer than the successes in `y`. Got {values[row]:g} trial(s) "
            f"with {successes[row]:g} success(es) in row {row}. Pass trials=... with `y`, and drop rows without trials."
        )
    return values


def learn_target_scaling(y: Array, weights: Array, *, centred: bool) -> Scaling:
    """Targets ``(N, C)`` brought to deviation 1, and to mean 0 if ``centred``: logarithms ask for the place of zero."""
    learned = Scaling.learn(y, weights)
    return learned if centred else dataclasses.replace(learned, mean=np.zeros_like(learned.mean))


def typical_latent(name: str, targets: Array, weights: Array) -> float:
    """The constant latent value that targets ``(N,)``, or successes and trials ``(N, 2)``, have on average.

    Zero where there is none, as for the model of a file, which starts anywhere.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if name == "binomial":
            pairs = targets if targets.ndim == 2 else np.column_stack([targets, np.ones_like(targets)])
            successes, trials = np.average(pairs, axis=0, weights=weights)
            value = np.log((successes + 0.5) / (trials - successes + 0.5))
        elif name == "log_normal":
            value = np.average(np.log(targets), weights=weights)
        else:
            mean = np.average(targets, weights=weights)
            value = {"log": np.log(mean), "logit": np.log(mean / (1.0 - mean))}.get(link_of(name), mean)
    return float(value) if np.isfinite(value) else 0.0


def latent_targets(name: str, targets: Array, weights: Array) -> tuple[Array, Array, dict[str, Any]]:
    """Targets whose mean is about the latent function, for another model to predict; with weights, and its options.

    Args:
        name: Of the likelihood.
        targets: In the units of the model ``(N,)``, or successes and trials ``(N, 2)``.
        weights: Of the rows ``(N,)``.
    """
    if name == "gamma":
        return targets, weights, {"loss": "poisson", "classes": 1}
    if name == "log_normal":
        targets = np.log(targets)
    elif name == "beta":
        targets = np.log(targets) - np.log1p(-targets)
    elif name == "binomial":
        successes, trials = targets.T
        targets, weights = np.log(successes + 0.5) - np.log(trials - successes + 0.5), weights * trials
    return targets, weights, {"loss": "squared_error", "classes": 1}


def response_covariance(link: str, means: Array, latent_mean: Array, latent_covariance: Array) -> Array:
    """Covariances of the conditional means of observations at M rows ``(M, M)``, the latent function jointly Gaussian.

    Exact for the identity and the logarithm; of shares a series in powers of the correlation (Mehler), to 60 terms.

    Args:
        link: See ``link_of``.
        means: Means of the observations ``(M,)``.
        latent_mean: Of the latent function ``(M,)``.
        latent_covariance: Of the latent function ``(M, M)``.
    """
    if link == "identity":
        return latent_covariance
    if link == "log":
        return np.outer(means, means) * np.expm1(latent_covariance)
    spread = np.sqrt(np.clip(np.diag(latent_covariance), 1e-300, None))
    correlation = np.clip(latent_covariance / np.outer(spread, spread), -1.0, 1.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_HERMITE_NODES)
    values = 1.0 / (1.0 + np.exp(-(latent_mean[:, None] + spread[:, None] * nodes))) * weights / weights.sum()
    total, power = np.zeros_like(correlation), np.ones_like(correlation)
    before, now = np.zeros_like(nodes), np.ones_like(nodes)  # Hermite polynomials of norm 1
    for degree in range(1, _HERMITE_TERMS):
        before, now = now, (nodes * now - np.sqrt(degree - 1.0) * before) / np.sqrt(degree)
        power = power * correlation
        coefficients = values @ now
        total += np.outer(coefficients, coefficients) * power
    return total


def draw_responses(likelihood: Any, latent: Array, seed: int, like: torch.Tensor, **options: Any) -> Array:
    """Observations drawn at latent values ``(S, M)`` or ``(S, M, C)``, of that shape without latent functions.

    Args:
        likelihood: The likelihood.
        latent: Latent values.
        seed: Of the draws; torch's global random state stays as it is.
        like: For dtype and device.
        **options: Keywords of the conditional distribution, such as the number of trials.
    """
    values = torch.as_tensor(latent).to(like)
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []), torch.no_grad():
        torch.manual_seed(seed)
        return np.asarray(likelihood.forward(values, **options).sample().double().cpu())

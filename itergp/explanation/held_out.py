"""How well a model predicts rows that it was not conditioned on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itergp.errors import SolverError
from itergp.explanation.baselines import constant
from itergp.explanation.responses import MonotoneResponse, label_probabilities
from itergp.explanation.scores import Predictions
from itergp.explanation.subject import Subject
from itergp.models import GP
from itergp.models.streaming import Stream

Array = NDArray[np.float64]

COVERAGES = (0.5, 0.8, 0.9, 0.95)
FEW_ROWS = 1000  # up to here each quarter of the rows is held out in turn
_FOLDS, _MOST_HELD_OUT, _LEAST = 4, 4000, 8


@dataclass(frozen=True)
class HeldOut:
    """Predictions of rows that were held out.

    Attributes:
        targets: Of these rows ``(M,)`` or ``(M, 2)``, in the units of the data.
        weights: Of these rows ``(M,)``.
        model: What the model predicted.
        half: What it predicted with half as many rows; None if that was not asked for.
        constant: What a prediction without columns is.
        num_learned: Rows that were learned from.
    """

    targets: Array
    weights: Array
    model: Predictions
    half: Predictions | None
    constant: Predictions
    num_learned: int


def predict_rows(subject: Subject, inputs: torch.Tensor, targets: Array, model: GP | None = None) -> Predictions:
    """What the model says about rows.

    Args:
        subject: Whose model, unless another is given, and whose scales.
        inputs: Rows as the model takes them ``(M, D)``.
        targets: Their targets, in the units of the data.
        model: A model with the same scales.
    """
    model = subject.model if model is None else model
    calculus = model.calculus
    wanted = calculus.validate_targets(torch.as_tensor(subject.model_targets(targets)).to(inputs))
    observes, densities, points, probs = subject.observes, [], [], []
    with torch.no_grad():
        for rows, mean, covariance in Stream(model, model.conditioned, (inputs,)).marginals(model.tempering):
            if not subject.known_noise:
                densities.append(calculus.predictive_log_density(mean, covariance, wanted[rows]))
            if observes in ("label", "level"):
                probs.append(label_probabilities(calculus.predictive(mean, covariance)))
            elif not isinstance(subject.response, MonotoneResponse):
                points.append(
                    calculus.predictive(mean, covariance, **exposures(subject, targets[rows])).mean * subject.unit
                )
            else:
                points.append(mean[:, 0])
    log_density = np.concatenate([_array(part) for part in densities]) - np.log(subject.unit) if densities else None
    if observes == "count" and not _whole(targets):
        log_density = None  # rates have no probability of their own
    if probs:
        shares = _shares(np.concatenate([_array(part) for part in probs]))
        return Predictions(log_density, shares.argmax(1).astype(np.float64), shares)
    point = np.concatenate([_array(part) for part in points])
    if isinstance(subject.response, MonotoneResponse):
        point = subject.response.restore(point)
    return Predictions(log_density, point)


def exposures(subject: Subject, targets: Array) -> dict[str, Any]:
    """What is known of rows besides their targets, as keywords of a prediction."""
    if targets.ndim < 2 or "exposure" not in subject.model.calculus.predictive_options:
        return {}
    like = subject.model.held_data.like
    return {"exposure": torch.as_tensor(targets[:, 1], dtype=like.dtype, device=like.device)}


def covered(subject: Subject, values: Array, targets: Array) -> dict[float, tuple[Array, Array]]:
    """Central intervals of some levels, of real values and counts: how much each row's holds, and whether it holds the target.

    Args:
        subject: Whose model predicts.
        values: Encoded rows ``(M, E)``.
        targets: Their targets.

    Returns:
        By level the probability that the model gives to its interval ``(M,)``, which of counts is more than the level, and 1
        or 0.
    """
    inputs = subject.inputs(values)
    y = subject.model_targets(targets)
    y = y[:, 0] if y.ndim == 2 else y
    counts = subject.observes == "count"
    found: dict[float, list[Array]] = {level: [] for level in COVERAGES}
    with torch.no_grad():
        predictive: Any
        for rows, predictive in subject.model.predict_batches(inputs, **exposures(subject, targets)):
            for level, parts in found.items():
                low, high = (predictive.quantile(0.5 + 0.5 * side * level) for side in (-1.0, 1.0))
                below = torch.where(low > 0.0, predictive.cdf((low - 1.0).clamp_min(0.0)), 0.0) if counts else None
                stated = torch.full_like(low, level) if below is None else predictive.cdf(high) - below
                low, high = _array(low), _array(high)
                parts.append(np.stack([_array(stated), (low <= y[rows]) & (y[rows] <= high)]))
    together = {level: np.concatenate(parts, 1) for level, parts in found.items()}
    return {level: (both[0], both[1]) for level, both in together.items()}


def split(subject: Subject, *, turns: bool = True) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to learn from and rows to judge by, by number: a quarter at random, or with few rows each quarter in turn.

    Args:
        subject: Whose rows.
        turns: Whether few rows have their turns; otherwise one quarter is enough.
    """
    order = np.random.default_rng(0).permutation(subject.num_rows)
    if subject.num_rows <= FEW_ROWS:
        folds = np.array_split(order, _FOLDS)
        pairs = [(np.concatenate([*folds[:k], *folds[k + 1 :]]), folds[k]) for k in range(_FOLDS)]
        return pairs if turns else pairs[:1]
    count = min(len(order) // _FOLDS, _MOST_HELD_OUT)
    return [(order[count:], order[:count])]


def conditioned_on(subject: Subject, rows: NDArray[np.intp]) -> GP:
    """A copy of the model, with its hyperparameters, that knows some of the rows alone."""
    model, held = subject.model, subject.model.held_data
    chosen = torch.as_tensor(rows, device=held.like.device)
    twin = copy.deepcopy(model)
    weight = None if held.sample_weight is None else held.sample_weight[chosen]
    twin.set_train_data(held.inputs[0][chosen], held.targets[chosen], strict=False, sample_weight=weight)
    return twin.eval()


def can_hold_out(subject: Subject) -> bool:
    """Whether some rows can be looked at without the others, and baselines know what was observed."""
    if subject.observes == "share" or (subject.observes == "positive" and subject.targets.shape[1] > 2):
        return False  # trials, left-censored times and intervals
    return subject.num_rows >= _LEAST and subject.model.calculus.exchangeable and not subject.known_noise


def held_out(subject: Subject) -> HeldOut | None:
    """Predictions of rows by a model with the hyperparameters of all of them, conditioned on the others and on half of these.

    None where rows cannot be held out, or a solve fails.
    """
    if not can_hold_out(subject):
        return None
    parts: list[tuple[Array, Array, Predictions, Predictions, Predictions]] = []
    pairs = split(subject)
    try:
        for learned, judged in pairs:
            targets, weights = subject.targets[judged], subject.weights[judged]
            inputs = subject.known_inputs(judged)
            whole, half = (conditioned_on(subject, rows) for rows in (learned, learned[: max(2, len(learned) // 2)]))
            predicted = [predict_rows(subject, inputs, targets, model) for model in (whole, half)]
            every = (subject.values, subject.targets, subject.weights)
            known, unseen = ((every[0][at], every[1][at], every[2][at]) for at in (learned, judged))
            plain = constant(subject, known, unseen)
            parts.append((targets, weights, predicted[0], predicted[1], plain))
    except SolverError:
        return None
    targets, weights = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    joined = [_joined([part[place] for part in parts]) for place in (2, 3, 4)]  # type: ignore[misc]
    return HeldOut(targets, weights, joined[0], joined[1], joined[2], len(pairs[0][0]))


# ----------------------------------------------------------------------------------- inside
def _joined(parts: list[Predictions]) -> Predictions:
    densities = [part.log_density for part in parts if part.log_density is not None]
    probs = [part.probs for part in parts if part.probs is not None]
    return Predictions(
        np.concatenate(densities) if len(densities) == len(parts) else None,
        np.concatenate([part.point for part in parts]),
        np.concatenate(probs) if probs else None,
    )


def _whole(targets: Array) -> bool:
    counts = targets[:, 0] if targets.ndim == 2 else targets
    return bool((counts == np.floor(counts)).all())


def _shares(probs: Array) -> Array:
    return np.stack([1.0 - probs, probs], -1) if probs.ndim == 1 else probs


def _array(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().double().cpu().numpy()
    return found

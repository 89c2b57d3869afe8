"""Losses of predictions of held-out rows, and what they come to, alone and in pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from itergp.diagnostics.estimates import Estimate

Array = NDArray[np.float64]

# what is observed -> name of the loss beside the log loss, and of a score that people know better
ERRORS = {
    "label": "share of wrong labels",
    "level": "mean distance in levels",
    "count": "mean Poisson deviance",
    "real": "root mean squared error",
    "positive": "",
}


@dataclass(frozen=True)
class Predictions:
    """What was predicted of M held-out rows, by any method.

    Attributes:
        log_density: Log-densities of the targets ``(M,)`` in nats; None where there are none.
        point: Labels by number, values, expected counts, median times ``(M,)``.
        probs: Probabilities of labels ``(M, K)``, or None.
    """

    log_density: Array | None
    point: Array
    probs: Array | None = None


def errors_of(predictions: Predictions, targets: Array, observes: str) -> Array | None:
    """Losses other than the log loss ``(M,)``: see ``ERRORS``; None of times.

    Args:
        predictions: What was predicted.
        targets: ``(M,)``, or ``(M, 2)`` with exposures.
        observes: What an observation is.
    """
    y = targets[:, 0] if targets.ndim == 2 else targets
    if observes == "label":
        return (predictions.point != y).astype(np.float64)
    if observes == "level":
        return np.abs(predictions.point - y)
    if observes == "count":
        rate = np.maximum(predictions.point, 1e-12)
        deviance: Array = 2.0 * (xlogy(y, y / rate) - y + rate)
        return deviance
    return None if observes == "positive" else (predictions.point - y) ** 2


def error_difference(losses: Array, best: Array, weights: Array, observes: str) -> Estimate:
    """How far a method's error is above another's on the same rows, as people write it: of squared errors between the roots."""
    if observes != "real":
        return Estimate.of(losses - best, weights)
    roots = [max(float(np.sqrt(np.average(one, weights=weights))), 1e-300) for one in (losses, best)]
    linear = Estimate.of(losses / (2.0 * roots[0]) - best / (2.0 * roots[1]), weights)
    return Estimate(roots[0] - roots[1], linear.error)


def error_score(losses: Array, weights: Array, observes: str) -> Estimate:
    """The mean of ``errors_of`` as people write it: of squared errors the root."""
    found = Estimate.of(losses, weights)
    if observes != "real" or found.mean <= 0.0:
        return found
    root = float(np.sqrt(found.mean))
    return Estimate(root, found.error / (2.0 * root))

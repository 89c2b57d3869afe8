"""Forecasts of methods that predict means: how rows vary around them is learned from rows that were left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from itergp.baselines.forecasts import of_counts, of_normal
from itergp.baselines.rows import COUNTS, Array, Forecast, Rows
from itergp.diagnostics.residual_noise import CountNoise, residual_deviation

_FOLDS = 5

Predictor = Callable[[Array], Array]
"""Probabilities ``(M, C)`` or means ``(M,)`` at encoded inputs ``(M, E)``."""

Fit = Callable[[Array, NDArray[Any], Array], Predictor]
"""From encoded inputs, targets and weights to what is fitted."""


def out_of_fold(fit: Fit, x: Array, rows: Rows, seed: int) -> Array:
    """Means ``(N,)``, each from a fit without its row; of counts rates."""
    y, weights = rates(rows)
    found = np.empty(len(rows))
    for train, test in KFold(min(_FOLDS, len(rows)), shuffle=True, random_state=seed).split(x):
        found[test] = fit(x[train], y[train], weights[train])(x[test])
    return found


def rates(rows: Rows) -> tuple[Array, Array]:
    """Counts per exposure with weights times exposure, which have the same Poisson likelihood; real values as they are."""
    return rows.y / rows.exposures, rows.weights * rows.exposures


def forecast_means(fit: Fit, x: Array, train: Rows, test_x: Array, test: Rows, seed: int) -> Forecast:
    """The forecast of a method that predicts means; how rows vary around them is learned from predictions out of fold.

    Real values get a normal distribution with the residuals' deviation; counts Poisson's, or a negative binomial one.
    """
    left_out = out_of_fold(fit, x, train, seed)
    mean = fit(x, *rates(train))(test_x)
    return distribute(mean, left_out, train, test)


def distribute(mean: Array, left_out: Array, train: Rows, test: Rows) -> Forecast:
    """The forecast for means ``(M,)``, given those ``(N,)`` of the training rows out of fold."""
    if train.task == COUNTS:
        noise = CountNoise.learn(train.y, left_out * train.exposures, train.weights)
        return of_counts(noise, mean * test.exposures, test)
    return of_normal(mean, residual_deviation(train.y, left_out, train.weights), test)

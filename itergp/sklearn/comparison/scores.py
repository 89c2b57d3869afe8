"""Scores of forecasts with their standard errors."""

from __future__ import annotations

import numpy as np

from itergp.baselines.rows import COUNTS, LABELLED, REGRESSION, SURVIVAL, Array, Forecast, Rows
from itergp.diagnostics import concordance_index
from itergp.errors import InputError

# task -> what is reported beside the log-density, and whether more of it is better
SECOND = {
    **dict.fromkeys(LABELLED, ("accuracy", True)),
    COUNTS: ("Poisson deviance", False),
    REGRESSION: ("mean absolute error", False),
    SURVIVAL: ("concordance", True),
}


def second_scores(forecast: Forecast, rows: Rows) -> Array:
    """The other usual score, row by row ``(M,)``; not of times, whose concordance is one of pairs.

    Raises:
        InputError: If the rows are times.
    """
    if rows.task in LABELLED:
        return (forecast.point == rows.y).astype(np.float64)
    if rows.task == REGRESSION:
        return np.abs(rows.y - forecast.point)
    if rows.task == COUNTS:
        part = np.where(rows.y > 0.0, rows.y * np.log(np.where(rows.y > 0.0, rows.y, 1.0) / forecast.point), 0.0)
        return 2.0 * (part - rows.y + forecast.point)
    raise InputError(f"Scores must be those of rows. Got the task {rows.task}. Use `concordance`.")


def concordance(forecast: Forecast, rows: Rows) -> float:
    """Harrell's C, NaN where no pair is comparable."""
    event = rows.y[:, 1] == 1.0
    try:
        return concordance_index(event, rows.y[:, 0], forecast.point, rows.weights)
    except InputError:
        return float("nan")

"""This package as one of the methods that are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.baselines.forecasts import HIGH, LOW, covered_times, of_labels
from itergp.baselines.methods import Method
from itergp.baselines.rows import (
    CLASSES,
    COUNTS,
    LABELLED,
    ORDINAL,
    REGRESSION,
    SURVIVAL,
    Forecast,
    Rows,
)
from itergp.sklearn.classifiers import GPClassifier
from itergp.sklearn.counts import GPCountRegressor
from itergp.sklearn.ordinal import GPOrdinalClassifier
from itergp.sklearn.regressors import GPRegressor
from itergp.sklearn.survival import GPSurvival

# task -> the estimator of this package
ESTIMATORS: dict[str, type] = {
    CLASSES: GPClassifier,
    COUNTS: GPCountRegressor,
    ORDINAL: GPOrdinalClassifier,
    REGRESSION: GPRegressor,
    SURVIVAL: GPSurvival,
}


@dataclass
class Own(Method):
    """An estimator of this package.

    Attributes:
        options: Its arguments that are not defaults.
        name: As reports call it.
        fitted: The estimator that was fitted last.
    """

    options: dict[str, Any] = field(default_factory=dict)
    name: str = "itergp"
    fitted: Any = None

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        options = {"random_state": seed, **self.options}
        if train.task == ORDINAL:
            options["levels"] = train.levels
        self.fitted = ESTIMATORS[train.task](**options)
        fit_estimator(self.fitted, train)
        return forecast_of(self.fitted, test)


@dataclass
class Fitted(Method):
    """An estimator of this package that was fitted to the training rows already.

    Attributes:
        estimator: The estimator.
        name: As reports call it.
    """

    estimator: Any
    name: str = "itergp"

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        return forecast_of(self.estimator, test)


def fit_estimator(estimator: Any, rows: Rows) -> None:
    """Fits an estimator of this package to rows."""
    exposed = {} if rows.exposure is None else {"exposure": rows.exposure}
    estimator.fit(rows.table, _targets(rows), sample_weight=rows.weighted, **exposed)


def add_rows(estimator: Any, rows: Rows) -> None:
    """Adds rows to a fitted estimator of this package; hyperparameters stay."""
    exposed = {} if rows.exposure is None else {"exposure": rows.exposure}
    estimator.partial_fit(rows.table, _targets(rows), sample_weight=rows.weighted, **exposed)


def write_report(estimator: Any, path: Path, rows: Rows) -> None:
    """Writes the report of a fitted estimator of this package, judged by rows that it has not seen; if none, by its own."""
    if not len(rows):
        estimator.report(path)
        return
    exposed = {} if rows.exposure is None else {"exposure": rows.exposure}
    estimator.report(path, rows.table, _targets(rows), sample_weight=rows.weighted, **exposed)


def _targets(rows: Rows) -> NDArray[Any]:
    return rows.y[:, ::-1] if rows.task == SURVIVAL else rows.y  # event, time


def forecast_of(estimator: Any, rows: Rows) -> Forecast:
    """What a fitted estimator of this package says about rows, whose labels it knows."""
    if rows.task in LABELLED:
        return of_labels(estimator.predict_proba(rows.table), estimator.classes_, rows)
    if rows.task == SURVIVAL:
        density = estimator.predictive_log_density(rows.table, _targets(rows))
        censored = np.column_stack([np.zeros(len(rows)), rows.y[:, 0]])
        later = np.exp(estimator.predictive_log_density(rows.table, censored))
        return Forecast(density, estimator.predict(rows.table), covered_times(later, rows))
    exposed = {} if rows.exposure is None else {"exposure": rows.exposure}
    low, median, high = estimator.predict_quantiles(rows.table, (LOW, 0.5, HIGH), **exposed).T
    density = estimator.predictive_log_density(rows.table, rows.y, **exposed)
    point = estimator.predict(rows.table, **exposed) if rows.task == COUNTS else median
    return Forecast(density, point, ((rows.y >= low) & (rows.y <= high)).astype(np.float64))

"""What is compared: how a method goes from rows to forecasts; this package, and what needs no inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itergp.diagnostics.residual_noise import CountNoise, residual_deviation
from itergp.sklearn.classifiers import GPClassifier
from itergp.sklearn.comparison.forecasts import (
    HIGH,
    LOW,
    Hazards,
    covered_times,
    of_counts,
    of_labels,
    of_normal,
)
from itergp.sklearn.comparison.rows import (
    CLASSES,
    COUNTS,
    LABELLED,
    ORDINAL,
    REGRESSION,
    SURVIVAL,
    TASKS,
    Forecast,
    Rows,
)
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


class Method(ABC):
    """A way to go from training rows to forecasts for others."""

    name: str
    tasks: Sequence[str] = TASKS

    @abstractmethod
    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """Learns from some rows and predicts others.

        Args:
            train: N rows.
            test: M rows; all labels are among those of ``train``.
            seed: Of everything random.
        """


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


class Baseline(Method):
    """What is known without inputs: shares of labels, one normal or count distribution, the Kaplan-Meier curve."""

    name = "baseline"

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        if train.task in LABELLED:
            shares = np.bincount(train.codes, train.weights) + 1.0
            return of_labels(np.tile(shares / shares.sum(), (len(test), 1)), train.labels, test)
        if train.task == SURVIVAL:
            return Hazards.learn(train.y[:, 0], train.y[:, 1] == 1.0, train.weights).forecast(test)
        if train.task == COUNTS:
            rate = train.weights @ train.y / (train.weights @ train.exposures)
            noise = CountNoise.learn(train.y, rate * train.exposures, train.weights)
            return of_counts(noise, rate * test.exposures, test)
        mean = float(np.average(train.y, weights=train.weights))
        return of_normal(np.full(len(test), mean), residual_deviation(train.y, mean, train.weights), test)

"""How a method goes from rows to forecasts, and the one that needs no inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from itergp.baselines.forecasts import Hazards, of_counts, of_labels, of_normal
from itergp.baselines.rows import COUNTS, LABELLED, SURVIVAL, TASKS, Forecast, Rows
from itergp.diagnostics.residual_noise import CountNoise, residual_deviation


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

"""Two moons: what is predicted far from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_moons
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics import log_loss

from benchmarks.posterior.results import Results
from itergp.sklearn import GPClassifier

ROWS = (499, 501, 2_000)
DEFAULT, PLUGGED_IN, SCIKIT = "GPClassifier()", "its mode plugged in", "scikit-learn"
DISTANCES = tuple(float(s) for s in np.linspace(0.0, 10.0, 41))
GRID = 81
EXTENT = (-6.0, 7.0, -6.0, 6.5)  # of the map
Predict = Callable[[np.ndarray], np.ndarray]


def data(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two moons with noise of deviation 0.25."""
    return make_moons(rows, noise=0.25, random_state=seed)


def line() -> np.ndarray:
    """Points at x = 0 that go away from the data."""
    return np.array([[0.0, 0.3 + s] for s in DISTANCES])


def grid() -> np.ndarray:
    """Points of the map, rows from below."""
    left, right, low, high = EXTENT
    first, second = np.meshgrid(np.linspace(left, right, GRID), np.linspace(low, high, GRID))
    return np.stack([first.ravel(), second.ravel()], 1)


@dataclass(frozen=True)
class Fitted:
    """The default classifier and what it learned from.

    Attributes:
        rows: Number of rows.
        classifier: Fitted.
    """

    rows: int
    classifier: GPClassifier

    @classmethod
    def of(cls, rows: int, **options: Any) -> Fitted:
        """With all defaults but ``options``."""
        return cls(rows, GPClassifier(**options).fit(*data(rows)))

    def default(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of the first class."""
        return self.classifier.predict_proba(x)[:, 0]

    def plugged_in(self, x: np.ndarray) -> np.ndarray:
        """The same from the mode, at the same hyperparameters."""
        model = self.classifier.model_
        kept = model.approximation, model.tempering
        model.approximation, model.tempering = "laplace", math.inf
        try:
            with torch.no_grad():
                return self.classifier.predict_proba(x)[:, 0]
        finally:
            model.approximation, model.tempering = kept


def run(results: Results, rows: Iterable[int] = ROWS, **options: Any) -> None:
    """Probabilities along a line, test NLL, and once the map."""
    rows = tuple(rows)
    for number in rows:
        if results.find("moons", rows=number, method=SCIKIT) is not None:
            continue
        fitted = Fitted.of(number, **options)
        rival = GaussianProcessClassifier(1.0 * RBF(1.0), random_state=0).fit(*data(number))
        methods: dict[str, Predict] = {
            DEFAULT: fitted.default,
            PLUGGED_IN: fitted.plugged_in,
            SCIKIT: lambda x, rival=rival: rival.predict_proba(x)[:, 0],
        }
        x, y = data(2_000, seed=1)
        chosen = fitted.classifier.model_
        about = {"approximation": chosen.approximation, "tempering": chosen.tempering}
        for name, predict in methods.items():
            found = {"nll": float(log_loss(y == 0, predict(x))), "line": predict(line()).tolist()}
            extra = about if name == DEFAULT else {}
            if number == max(rows) and name != SCIKIT:
                extra = {**extra, "map": [round(float(p), 3) for p in predict(grid())]}
            results.add("moons", rows=number, method=name, **found, **extra)

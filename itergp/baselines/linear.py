"""Linear models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import LinearKernel, ScaleKernel
from gpytorch.means import ConstantMean
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline

from itergp.baselines.encoding import CodedTable
from itergp.baselines.forecasts import covered_times, of_labels
from itergp.baselines.means import Fit, Predictor, distribute, out_of_fold, rates
from itergp.baselines.methods import Method
from itergp.baselines.rows import COUNTS, LABELLED, SURVIVAL, Array, Forecast, Rows
from itergp.learning import fit
from itergp.likelihoods import WeibullLikelihood
from itergp.models import GP

_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # the best for rows out of fold is taken


@dataclass
class Linear(Method):
    """Logistic, ridge, Poisson or Weibull regression; the penalty is the best of five for rows out of fold.

    That of times is the prior of a Gaussian process that is linear, which learns it.
    """

    name: str = "linear model"

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        coded = CodedTable.learn(train.table)
        encode = coded.for_lines()
        x, test_x = coded.transform(train.table), coded.transform(test.table)
        if train.task == SURVIVAL:
            return self._times(encode, x, train, test_x, test, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of iterations: the penalty that is chosen predicts best
            if train.task in LABELLED:
                return self._labels(encode, x, train, test_x, test, seed)
            make = self._poisson if train.task == COUNTS else self._ridge
            fits = [make(encode, penalty, len(train)) for penalty in _PENALTIES]
            left_out = [out_of_fold(fit, x, train, seed) for fit in fits]
            errors = [self._loss(mean, train) for mean in left_out]
            best = int(np.argmin(errors))
            mean = fits[best](x, *rates(train))(test_x)
        return distribute(mean, left_out[best], train, test)

    @staticmethod
    def _loss(mean: Array, rows: Rows) -> float:
        """Mean squared error, or Poisson's loss."""
        y, weights = rates(rows)
        if rows.task == COUNTS:
            mean = np.maximum(mean, np.finfo(float).tiny)
            return float(weights @ (mean - y * np.log(mean)))
        return float(weights @ (y - mean) ** 2)

    @staticmethod
    def _ridge(encode: Any, penalty: float, num_rows: int) -> Fit:
        def fit(x: Array, y: Array, weights: Array) -> Predictor:
            unit = float(weights.mean())
            model = make_pipeline(clone(encode), Ridge(penalty * unit))
            return model.fit(x, y, ridge__sample_weight=weights).predict

        return fit

    @staticmethod
    def _poisson(encode: Any, penalty: float, num_rows: int) -> Fit:
        def fit(x: Array, y: Array, weights: Array) -> Predictor:
            model = make_pipeline(clone(encode), PoissonRegressor(alpha=penalty / num_rows, max_iter=300))
            return model.fit(x, y, poissonregressor__sample_weight=weights).predict

        return fit

    @staticmethod
    def _labels(encode: Any, x: Array, train: Rows, test_x: Array, test: Rows, seed: int) -> Forecast:
        labels, index = train.labels, train.codes

        def fit(rows: Any, penalty: float) -> Callable[[Array], Array]:
            model = make_pipeline(clone(encode), LogisticRegression(C=1.0 / penalty, max_iter=200))
            model.fit(x[rows], index[rows], logisticregression__sample_weight=train.weights[rows])

            def probs(x: Array) -> Array:
                found = np.zeros((len(x), len(labels)))
                found[:, model.classes_] = model.predict_proba(x)
                return found

            return probs

        losses = np.zeros(len(_PENALTIES))
        for rows, left_out in KFold(3, shuffle=True, random_state=seed).split(x):
            if len(np.unique(index[rows])) < 2:
                continue
            for i, penalty in enumerate(_PENALTIES):
                at = fit(rows, penalty)(x[left_out])[np.arange(len(left_out)), index[left_out]]
                losses[i] -= train.weights[left_out] @ np.log(np.maximum(at, 1e-6))
        best = _PENALTIES[int(losses.argmin())]
        return of_labels(fit(np.arange(len(x)), best)(test_x), labels, test)

    @staticmethod
    def _times(encode: Any, x: Array, train: Rows, test_x: Array, test: Rows, seed: int) -> Forecast:
        scaled = encode.fit(x)
        inputs, new = (torch.as_tensor(_dense(scaled.transform(part))) for part in (x, test_x))
        targets = torch.as_tensor(train.y)
        mean = ConstantMean()
        mean.constant = float(np.log(train.weights @ train.y[:, 0]) - np.log(train.weights @ train.y[:, 1]))
        weights = None if train.weighted is None else torch.as_tensor(train.weighted)
        model = GP(
            inputs, targets, WeibullLikelihood(), mean=mean, kernel=ScaleKernel(LinearKernel()), sample_weight=weights
        ).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model that is there to be compared with
            fit(model, seed=seed, progress=False)
        return of_times(model, new, test)


def _dense(matrix: Any) -> Array:
    found: Array = matrix.toarray() if sparse.issparse(matrix) else matrix
    return found


def of_times(model: GP, inputs: torch.Tensor, rows: Rows) -> Forecast:
    """What a model of times says about M rows.

    Args:
        model: The model.
        inputs: Its inputs ``(M, D)``.
        rows: The rows.
    """
    found: list[list[Array]] = [[], [], []]
    targets = torch.as_tensor(rows.y).to(inputs)
    with torch.no_grad():
        predictive: Any
        for part, predictive in model.predict_batches(inputs):
            values = (
                predictive.log_observed(targets[part]),
                predictive.quantile(0.5),
                predictive.log_survival(targets[part, 0]),
            )
            for kept, value in zip(found, values, strict=True):
                kept.append(value.double().cpu().numpy())
    density, median, later = map(np.concatenate, found)
    return Forecast(density, median, covered_times(np.exp(later), rows))

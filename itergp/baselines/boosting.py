"""Gradient boosting: scikit-learn's, and LightGBM where it is installed."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.preprocessing import TargetEncoder

from itergp.baselines.encoding import CodedTable
from itergp.baselines.forecasts import of_labels
from itergp.baselines.means import Predictor, forecast_means, rates
from itergp.baselines.methods import Method
from itergp.baselines.rows import COUNTS, LABELLED, REGRESSION, Array, Forecast, Rows

_MOST_TREES, _PATIENCE, _VALIDATION = 1000, 20, 0.1  # early stopping chooses how many
_MOST_TREE_LEVELS = 255  # that scikit-learn's trees take as levels


@dataclass
class Boosting(Method):
    """scikit-learn's histogram-based gradient boosting with early stopping; gaps and levels as such.

    Columns of more than 255 levels become the mean target of each level, out of fold.
    """

    name: str = "boosting (scikit-learn)"
    tasks: Sequence[str] = (*LABELLED, COUNTS, REGRESSION)

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        coded = CodedTable.learn(train.table)
        (x, levels), (test_x, _) = coded.for_trees(train.table), coded.for_trees(test.table)
        many = [i for i in levels if np.nanmax(x[:, i]) >= _MOST_TREE_LEVELS]
        few = [i for i in levels if i not in many]
        if many:
            x, test_x = _mean_targets(x, test_x, many, train, seed)
            rest = [i for i in range(max(levels) + 1) if i not in many]
            few = [rest.index(i) for i in few]  # those behind moved forward
        for i in few:  # a level that training did not have is no level
            test_x[test_x[:, i] > np.nanmax(x[:, i]), i] = np.nan
        options = {"categorical_features": few or None, "random_state": seed, "max_iter": _MOST_TREES}
        if train.task in LABELLED:
            counts = np.bincount(train.codes)
            options["early_stopping"] = bool(counts.min() > 1 and _VALIDATION * len(train) >= len(counts))
            options |= {} if options["early_stopping"] else {"max_iter": 100}
            model = HistGradientBoostingClassifier(**options).fit(x, train.codes, train.weights)
            return of_labels(model.predict_proba(test_x), train.labels, test)
        loss = "poisson" if train.task == COUNTS else "squared_error"

        def fit(x: Array, y: Array, weights: Array) -> Predictor:
            made = HistGradientBoostingRegressor(loss=loss, early_stopping=True, **options)
            return made.fit(x, y, weights).predict

        return forecast_means(fit, x, train, test_x, test, seed)


def _mean_targets(x: Array, test_x: Array, columns: list[int], rows: Rows, seed: int) -> tuple[Array, Array]:
    """Columns of levels as mean targets, put behind the other columns."""
    kind = "continuous" if rows.task not in LABELLED else "multiclass" if len(rows.labels) > 2 else "binary"
    encoder = TargetEncoder(target_type=kind, random_state=seed)
    target = rows.codes if rows.task in LABELLED else rates(rows)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a seed, which the newest scikit-learn takes in another way
        made = encoder.fit_transform(x[:, columns], target), encoder.transform(test_x[:, columns])
    rest = np.setdiff1d(np.arange(x.shape[1]), columns)
    return np.hstack([x[:, rest], made[0]]), np.hstack([test_x[:, rest], made[1]])


@dataclass
class LightGBM(Method):
    """LightGBM with early stopping on a tenth of the rows; gaps and levels as such."""

    name: str = "boosting (LightGBM)"
    tasks: Sequence[str] = (*LABELLED, COUNTS, REGRESSION)

    @staticmethod
    def installed() -> bool:
        """Whether it can be used."""
        return importlib.util.find_spec("lightgbm") is not None

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        import lightgbm

        coded = CodedTable.learn(train.table)
        (x, levels), (test_x, _) = coded.for_trees(train.table), coded.for_trees(test.table)
        labelled = train.task in LABELLED
        kind: Any = lightgbm.LGBMClassifier if labelled else lightgbm.LGBMRegressor
        objective = None if labelled else "poisson" if train.task == COUNTS else "regression"

        def fit(x: Array, y: NDArray[Any], weights: Array) -> Predictor:
            model = kind(n_estimators=_MOST_TREES, objective=objective, random_state=seed, n_jobs=0, verbose=-1)
            held_out = np.random.default_rng(seed).random(len(y)) < _VALIDATION
            if labelled:
                held_out &= np.isin(y, np.unique(y[~held_out]))
            model.fit(
                x[~held_out],
                y[~held_out],
                sample_weight=weights[~held_out],
                eval_set=[(x[held_out], y[held_out])],
                eval_sample_weight=[weights[held_out]],
                categorical_feature=levels,
                callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
            )
            return model.predict_proba if labelled else model.predict

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of columns
            if labelled:
                return of_labels(fit(x, train.codes, train.weights)(test_x), train.labels, test)
            return forecast_means(fit, x, train, test_x, test, seed)

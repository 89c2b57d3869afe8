"""What simple methods predict of held-out rows, on the same encoded columns: linear models and boosted trees."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, PoissonRegressor, RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from itergp.diagnostics.residual_noise import CountNoise, residual_deviation
from itergp.explanation.held_out import (
    constant,
    counts_predicted,
    labels_predicted,
    times_predicted,
    values_predicted,
)
from itergp.explanation.scores import Predictions
from itergp.explanation.subject import Subject
from itergp.tables import CategoricalColumn

Array = NDArray[np.float64]

_MOST_CATEGORIES = 255  # that boosted trees tell apart
_FOLDS = 3
CONSTANT = {
    "label": "class frequencies",
    "level": "level frequencies",
    "count": "mean rate",
    "real": "mean",
    "positive": "constant hazard",
}
LINEAR = {
    "label": "logistic regression",
    "level": "logistic regression",
    "count": "Poisson regression",
    "real": "ridge regression",
    "positive": "exponential regression",
}
BOOSTING = "boosted trees"


def baselines(
    subject: Subject, learned: tuple[Array, Array, Array], values: Array, targets: Array
) -> dict[str, Predictions]:
    """Predictions by name, the simplest first.

    Args:
        subject: What is observed, and what the columns mean.
        learned: Encoded rows, targets and weights to learn from.
        values: Encoded rows to predict.
        targets: Their targets.
    """
    observes = subject.observes
    found = {CONSTANT[observes]: constant(subject, learned[1], learned[2], targets)}
    methods: dict[str, Callable[[], Any]] = {
        LINEAR[observes]: lambda: _linear(subject),
        BOOSTING: lambda: _boosting(subject),
    }
    for name, make in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a solver of scikit-learn takes longer
            found[name] = _predicted(subject, make, learned, values, targets)
    return found


def _codes(subject: Subject) -> list[CategoricalColumn]:
    return [one for one in subject.encoder.columns_ if isinstance(one, CategoricalColumn) and one.coding == "codes"]


def _linear(subject: Subject) -> Any:
    coded = [column.indices[0] for column in _codes(subject)]
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), coded), remainder=StandardScaler(), sparse_threshold=0.0
    )
    kinds: dict[str, Any] = {
        "real": RidgeCV(np.logspace(-3, 3, 13)),
        "count": PoissonRegressor(alpha=1e-3, max_iter=1000),
        "positive": PoissonRegressor(alpha=1e-3, max_iter=1000),
    }
    return make_pipeline(columns, kinds.get(subject.observes, LogisticRegression(max_iter=1000)))


def _boosting(subject: Subject) -> Any:
    few = [column.indices[0] for column in _codes(subject) if column.num_levels < _MOST_CATEGORIES]
    options: dict[str, Any] = {"random_state": 0, "categorical_features": few or None}
    if subject.observes in ("label", "level"):
        return make_pipeline(HistGradientBoostingClassifier(**options))
    loss = "squared_error" if subject.observes == "real" else "poisson"
    return make_pipeline(HistGradientBoostingRegressor(loss=loss, **options))


def _predicted(
    subject: Subject,
    make: Callable[[], Any],
    learned: tuple[Array, Array, Array],
    values: Array,
    targets: Array,
) -> Predictions:
    X, y, weights = learned
    if subject.observes in ("label", "level"):
        if len(np.unique(y)) < 2:  # there is nothing to tell apart
            return constant(subject, y, weights, targets)
        model = _fitted(make(), X, y, weights)
        shares = np.zeros((len(values), len(subject.labels)))
        shares[:, model.classes_.astype(int)] = model.predict_proba(values)
        return labels_predicted(shares, targets)
    if subject.observes == "real":
        model, unseen = _fitted(make(), X, y, weights), _crossed(make(), X, y, weights)
        return values_predicted(model.predict(values), residual_deviation(y, unseen, weights), targets)
    first, second = (y[:, 0], y[:, 1]) if y.ndim == 2 else (y, np.ones(len(y)))
    if subject.observes == "positive":  # events per time: the likelihood of exponential times
        first, second = second, first
        return times_predicted(_fitted(make(), X, first / second, weights * second).predict(values), targets)
    rates = X, first / second, weights * second
    model, unseen = _fitted(make(), *rates), _crossed(make(), *rates)
    return counts_predicted(model.predict(values), targets, CountNoise.learn(first, unseen * second, weights))


def _fitted(model: Any, X: Array, y: Array, weights: Array) -> Any:
    return model.fit(X, y, **_weights(model, weights))


def _crossed(model: Any, X: Array, y: Array, weights: Array) -> Array:
    """Predictions of rows by models that have not seen them, which say how far off predictions are."""
    found: Array = cross_val_predict(model, X, y, cv=min(_FOLDS, len(y)), params=_weights(model, weights))
    return found


def _weights(model: Any, weights: Array) -> dict[str, Array]:
    return {f"{model.steps[-1][0]}__sample_weight": weights}

"""What simple methods predict of held-out rows, the same as in ``itergp.sklearn.compare``, for a fitted estimator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from itergp.baselines import Baseline, Linear, Method, Rows, simple_methods
from itergp.baselines.rows import COUNTS, TASK_OF, Forecast
from itergp.errors import ItergpWarning
from itergp.explanation.scores import Predictions
from itergp.explanation.subject import Subject
from itergp.tables import decode

Array = NDArray[np.float64]
Known = tuple[Array, Array, Array]
"""Encoded rows, targets and weights."""

CONSTANT = {
    "label": "class frequencies",
    "level": "level frequencies",
    "count": "mean rate",
    "real": "mean",
    "positive": "Kaplan-Meier curve",
}
LINEAR = {
    "label": "logistic regression",
    "level": "logistic regression",
    "count": "Poisson regression",
    "real": "ridge regression",
    "positive": "Weibull regression",
}


def baselines(subject: Subject, learned: Known, judged: Known) -> dict[str, Predictions]:
    """Predictions by name, the simplest first.

    Args:
        subject: What is observed, and what the columns mean.
        learned: Rows to learn from.
        judged: Rows to predict.
    """
    methods = reversed(simple_methods(TASK_OF[subject.observes]))
    return _predicted(subject, list(methods), learned, judged)


def constant(subject: Subject, learned: Known, judged: Known) -> Predictions:
    """The prediction that knows no columns; arguments as for ``baselines``."""
    (found,) = _predicted(subject, [Baseline()], learned, judged).values()
    return found


def _predicted(subject: Subject, methods: Sequence[Method], learned: Known, judged: Known) -> dict[str, Predictions]:
    train, test = (as_rows(subject, *part) for part in (learned, judged))
    names = {Baseline.name: CONSTANT[subject.observes], Linear.name: LINEAR[subject.observes]}
    found = {}
    for method in methods:
        name = names.get(method.name, method.name)
        try:
            found[name] = _as_predictions(subject, method.forecast(train, test, 0), train, test)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            warnings.warn(
                f"Methods to compare with must predict held-out rows. {name} does not: "
                f"{(str(error).splitlines() or [type(error).__name__])[0]} It is left out.",
                ItergpWarning,
                stacklevel=5,
            )
    return found


def as_rows(subject: Subject, values: Array, targets: Array, weights: Array) -> Rows:
    """Rows of a fitted estimator as methods of any kind take them.

    Args:
        subject: What is observed, and what the columns mean.
        values: Encoded rows.
        targets: Their targets, encoded.
        weights: Their weights.
    """
    return Rows.encoded(decode(subject.encoder.columns_, values), subject.observes, targets, weights)


def _as_predictions(subject: Subject, forecast: Forecast, train: Rows, test: Rows) -> Predictions:
    density: Array | None = forecast.log_density
    if test.task == COUNTS and not bool((test.y == np.floor(test.y)).all()):
        density = None  # rates have no probability of their own
    shares = None
    if forecast.probs is not None:
        shares = np.zeros((len(test), len(subject.labels)))
        shares[:, train.labels] = forecast.probs
    return Predictions(density, forecast.point.astype(np.float64), shares)

"""Fitted estimators that tests of explanations share: a table whose effects are known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas

from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, GPSurvival

ROWS = 160
KINDS = ("real", "classes", "two classes", "levels", "counts", "times")
NASTY = "<b>&'\"</b>"  # a name that is no HTML


@cache
def table(rows: int = ROWS) -> pandas.DataFrame:
    """Columns of every kind; ``nothing`` has no effect."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "curved": rng.uniform(-1.0, 1.0, rows),
            "up": rng.normal(size=rows) * 10.0 + 50.0,
            "city": rng.choice(["Oslo", "Rome", NASTY], rows),
            "nothing": rng.normal(size=rows),
            "when": pandas.date_range("2021-03-01", periods=rows, freq="5D"),
        }
    )
    frame.loc[::7, "up"] = np.nan
    return frame


def signal(frame: pandas.DataFrame) -> np.ndarray:
    """An additive function: of a parabola, a line, a level and gaps."""
    line = (frame["up"].fillna(50.0) - 50.0) / 10.0
    return (3.0 * frame["curved"] ** 2 + line + 1.5 * (frame["city"] == "Rome") + 1.0 * frame["up"].isna()).to_numpy()


@cache
def fitted(kind: str):
    """An estimator of each kind."""
    rng, X = np.random.default_rng(1), table()
    f = signal(X)
    options = {"kernel": "rbf", "max_iterations": 10}
    if kind == "real":
        return GPRegressor(**options, likelihood="gaussian").fit(X, 100.0 + 10.0 * f + 2.0 * rng.normal(size=len(f)))
    if kind == "classes":
        return GPClassifier(**options).fit(X, np.array(["low", NASTY, "top"])[np.digitize(f, [0.8, 2.2])])
    if kind == "two classes":
        return GPClassifier(**options).fit(X, f + 0.3 * rng.normal(size=len(f)) > 1.4)
    if kind == "levels":
        levels = ["bad", "fair", "good"]
        return GPOrdinalClassifier(levels=levels, **options).fit(X, np.array(levels)[np.digitize(f, [0.8, 2.2])])
    if kind == "counts":
        hours = rng.uniform(0.5, 3.0, len(f))
        return GPCountRegressor(distribution="poisson", **options).fit(
            X, rng.poisson(np.exp(0.5 * f) * hours), exposure=hours
        )
    times = rng.weibull(2.0, len(f)) * np.exp(0.5 * f)
    return GPSurvival(distribution="weibull", **options).fit(X, np.column_stack([times < 3.0, np.minimum(times, 3.0)]))

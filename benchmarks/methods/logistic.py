"""Regularised linear models: logistic regression, and Poisson regression for counts."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.methods.base import Budget, Callback, Method, Range, from_numpy, from_rates
from benchmarks.workloads import COUNTS, ORDERED, TrainingData


@dataclass(frozen=True)
class Logistic(Method):
    """scikit-learn's LogisticRegression, or PoissonRegressor, after standardising."""

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    penalty: float = 1.0

    @property
    def setup(self) -> str:
        return (
            "`StandardScaler` and `LogisticRegression(max_iter=1000)`, L2 penalty 1; counts: `PoissonRegressor()` for the mean, a "
            "negative binomial whose size is fitted to the training rows"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {"penalty": Range(1e-3, 1e3)}

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from sklearn.linear_model import LogisticRegression, PoissonRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, y = data.x.numpy(), data.y.numpy()
        if data.kind == COUNTS:
            linear = make_pipeline(StandardScaler(), PoissonRegressor(alpha=self.penalty, max_iter=1000)).fit(x, y)
            callback(from_rates(linear.predict, data))
        else:
            model = LogisticRegression(C=1.0 / self.penalty, max_iter=1000)
            callback(from_numpy(make_pipeline(StandardScaler(), model).fit(x, y).predict_proba))


METHODS: list[Method] = [Logistic("logistic regression", "linear")]

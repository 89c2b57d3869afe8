"""Random forests, as scikit-learn's defaults have them and as a probability machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.methods.base import Budget, Callback, Method, Range, from_numpy, from_rates
from benchmarks.workloads import COUNTS, ORDERED, TrainingData


@dataclass(frozen=True)
class RandomForest(Method):
    """scikit-learn's RandomForestClassifier, or its regressor by the Poisson criterion."""

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    n_estimators: int = 500
    min_samples_leaf: int = 10
    max_features: str | float = "sqrt"

    @property
    def setup(self) -> str:
        return (
            f"`RandomForestClassifier(n_estimators={self.n_estimators}, min_samples_leaf={self.min_samples_leaf})`: leaves of "
            "ten rows, whose frequencies are probabilities (probability machines, Malley et al. 2012), or of one row as "
            "scikit-learn's defaults; counts: the regressor with `criterion='poisson'` for the mean, a negative binomial "
            "whose size is fitted to the training rows"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {"min_samples_leaf": Range(1, 50, integer=True), "max_features": Range(0.1, 1.0)}

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        options: dict[str, Any] = {**self.configuration, "random_state": budget.seed, "n_jobs": budget.threads}
        x, y = data.x.numpy(), data.y.numpy()
        if data.kind == COUNTS:
            regressor = RandomForestRegressor(criterion="poisson", **options).fit(x, y)
            callback(from_rates(regressor.predict, data))
        else:
            callback(from_numpy(RandomForestClassifier(**options).fit(x, y).predict_proba))


METHODS: list[Method] = [
    RandomForest("random forest", "random forest"),
    RandomForest(
        "random forest, leaves of one row", "random forest", importance=2, n_estimators=100, min_samples_leaf=1
    ),
]

"""Explainable boosting machine of ``interpret``: boosted shape functions of single columns and of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.methods.base import Budget, Callback, Method, Range, from_numpy, from_rates
from benchmarks.workloads import COUNTS, ORDERED, TrainingData


@dataclass(frozen=True)
class ExplainableBoosting(Method):
    """ExplainableBoostingClassifier, or its regressor with the Poisson deviance; its defaults, which its authors recommend."""

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    packages: tuple[str, ...] = ("interpret",)
    learning_rate: float | None = None
    max_leaves: int = 2
    smoothing_rounds: int | None = None
    min_samples_leaf: int = 4

    @property
    def setup(self) -> str:
        return (
            "`ExplainableBoostingClassifier()`: 14 bags, 3 pairs per column, early stopping within each bag, the defaults "
            "that InterpretML's documentation advises; counts: the regressor with `objective='poisson_deviance'` for the "
            "mean, a negative binomial whose size is fitted to the training rows"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {
            "learning_rate": Range(0.0025, 0.2),
            "max_leaves": Range(2, 3, integer=True),
            "smoothing_rounds": Range(10, 1000, integer=True),
            "min_samples_leaf": Range(2, 20, integer=True),
        }

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from interpret.glassbox import ExplainableBoostingClassifier, ExplainableBoostingRegressor

        given = {key: value for key, value in self.configuration.items() if value is not None}
        options: dict[str, Any] = {**given, "random_state": budget.seed, "n_jobs": budget.threads}
        x, y = data.x.numpy(), data.y.numpy()
        if data.kind == COUNTS:
            regressor = ExplainableBoostingRegressor(objective="poisson_deviance", **options).fit(x, y)
            callback(from_rates(regressor.predict, data))
        else:
            callback(from_numpy(ExplainableBoostingClassifier(**options).fit(x, y).predict_proba))


METHODS: list[Method] = [ExplainableBoosting("EBM", "EBM")]

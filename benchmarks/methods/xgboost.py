"""XGBoost, with its defaults and stopped early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.methods.base import Budget, Callback, Method, Range, from_numpy, from_rates
from benchmarks.methods.boosting import held_out
from benchmarks.workloads import COUNTS, ORDERED, TrainingData

_PATIENCE = 50


@dataclass(frozen=True)
class XGBoost(Method):
    """XGBClassifier, or its regressor with the Poisson objective.

    Attributes:
        rounds: Trees, or at most so many.
        learning_rate: Shrinkage.
        max_depth: Of a tree.
        min_child_weight: Least curvature in a leaf.
        reg_lambda: L2 penalty of leaves.
        subsample: Share of rows for a tree.
        validation: Share of the training rows that stops training; None for all rounds.
    """

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    packages: tuple[str, ...] = ("xgboost",)
    rounds: int = 100
    learning_rate: float = 0.3
    max_depth: int = 6
    min_child_weight: float = 1.0
    reg_lambda: float = 1.0
    subsample: float = 1.0
    validation: float | None = None

    @property
    def setup(self) -> str:
        counts = "counts: the regressor with `objective='count:poisson'` for the mean, a negative binomial whose size is fitted"
        if self.validation is None:
            return f"`XGBClassifier()`, 100 rounds; {counts} to the training rows"
        return (
            f"`XGBClassifier(learning_rate={self.learning_rate})`, up to {self.rounds:,} rounds, stopped early on "
            f"{self.validation:.0%} of the training rows, as XGBoost's notes on tuning have it; {counts} to the training rows"
        )

    @property
    def search(self) -> dict[str, Range]:
        return {
            "learning_rate": Range(0.02, 0.3),
            "max_depth": Range(3, 10, integer=True),
            "min_child_weight": Range(0.1, 30.0),
            "reg_lambda": Range(1e-2, 10.0),
            "subsample": Range(0.5, 1.0, logarithmic=False),
        }

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        import xgboost

        counts, x, y = data.kind == COUNTS, data.x.numpy(), data.y.numpy()
        settings = {key: value for key, value in self.configuration.items() if key not in ("rounds", "validation")}
        settings |= {"n_estimators": self.rounds, "random_state": budget.seed, "n_jobs": budget.threads}
        options: dict[str, Any] = (
            settings if self.validation is None else settings | {"early_stopping_rounds": _PATIENCE}
        )
        model = (
            xgboost.XGBRegressor(objective="count:poisson", **options) if counts else xgboost.XGBClassifier(**options)
        )
        if self.validation is None:
            model.fit(x, y, verbose=False)
        else:
            train, rest = held_out(y, self.validation, budget.seed, stratify=not counts)
            model.fit(x[train], y[train], eval_set=[(x[rest], y[rest])], verbose=False)
        rounds = self.rounds if self.validation is None else int(model.best_iteration) + 1
        callback(from_rates(model.predict, data) if counts else from_numpy(model.predict_proba), rounds=rounds)


METHODS: list[Method] = [
    XGBoost("boosting (XGBoost)", "gradient boosting", importance=2),
    XGBoost(
        "boosting (XGBoost), early stopping",
        "gradient boosting",
        importance=3,
        rounds=2000,
        learning_rate=0.05,
        validation=0.2,
    ),
]

"""Gradient boosting, what a practitioner would use instead: scikit-learn's and LightGBM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.methods.base import Budget, Callback, Method, Predict, Range, from_numpy, from_rates
from benchmarks.workloads import COUNTS, ORDERED, TrainingData

_COUNTS = "counts: the regressor with `{}` for the mean, a negative binomial whose size is fitted to the training rows"
_EVERY = 10  # rounds of LightGBM between checkpoints


@dataclass(frozen=True)
class HistogramBoosting(Method):
    """scikit-learn's HistGradientBoostingClassifier, or its regressor with the Poisson loss."""

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    learning_rate: float = 0.1
    max_leaf_nodes: int = 31
    l2_regularization: float = 0.0
    early_stopping: str | bool = "auto"

    @property
    def setup(self) -> str:
        how = "" if self.early_stopping == "auto" else " with early stopping for any number of rows"
        return f"`HistGradientBoostingClassifier()`{how}; " + _COUNTS.format("loss='poisson'")

    @property
    def search(self) -> dict[str, Range]:
        return {
            "learning_rate": Range(0.01, 0.3),
            "max_leaf_nodes": Range(7, 127, integer=True),
            "l2_regularization": Range(1e-3, 10.0),
        }

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        x, y = data.x.numpy(), data.y.numpy()
        if data.kind == COUNTS:
            options: dict[str, Any] = {**self.configuration, "random_state": budget.seed, "loss": "poisson"}
            regressor = HistGradientBoostingRegressor(**options).fit(x, y)
            callback(from_rates(regressor.predict, data), rounds=int(regressor.n_iter_))
        else:
            model = HistGradientBoostingClassifier(**self.configuration, random_state=budget.seed).fit(x, y)
            callback(from_numpy(model.predict_proba), rounds=int(model.n_iter_))


@dataclass(frozen=True)
class LightGBM(Method):
    """LightGBM with a checkpoint every few rounds."""

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    packages: tuple[str, ...] = ("lightgbm",)
    rounds: int = 100
    learning_rate: float = 0.1
    num_leaves: int = 31
    min_child_samples: int = 20
    reg_lambda: float = 0.0

    @property
    def setup(self) -> str:
        return "`LGBMClassifier()`, 100 rounds; " + _COUNTS.format("objective='poisson'")

    @property
    def search(self) -> dict[str, Range]:
        return {
            "learning_rate": Range(0.02, 0.3),
            "num_leaves": Range(7, 127, integer=True),
            "min_child_samples": Range(5, 100, integer=True),
            "reg_lambda": Range(1e-3, 10.0),
        }

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        import lightgbm

        settings = {key: value for key, value in self.configuration.items() if key != "rounds"}
        settings |= {"n_estimators": self.rounds, "random_state": budget.seed, "n_jobs": budget.threads, "verbose": -1}

        def predictor(booster: Any) -> Predict:
            if data.kind == COUNTS:
                return from_rates(booster.predict, data)
            return from_numpy(booster.predict)

        def checkpoint(state: Any) -> None:
            if (state.iteration + 1) % _EVERY == 0:
                callback(predictor(state.model), rounds=state.iteration + 1)

        counts = data.kind == COUNTS
        model = lightgbm.LGBMRegressor(objective="poisson") if counts else lightgbm.LGBMClassifier()
        model.set_params(**settings).fit(data.x.numpy(), data.y.numpy(), callbacks=[checkpoint])
        callback(predictor(model.booster_), rounds=self.rounds)


METHODS: list[Method] = [
    HistogramBoosting("boosting (scikit-learn)", "gradient boosting"),
    HistogramBoosting(
        "boosting (scikit-learn), early stopping", "gradient boosting", importance=2, early_stopping=True
    ),
    LightGBM("boosting (LightGBM)", "gradient boosting"),
]

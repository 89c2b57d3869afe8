"""Gradient boosting, what a practitioner would use instead: scikit-learn's, LightGBM and CatBoost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.methods.base import Budget, Callback, Method, Predict, Range, from_numpy, from_rates
from benchmarks.workloads import COUNTS, ORDERED, TrainingData

_COUNTS = "counts: the regressor with `{}` for the mean, a negative binomial whose size is fitted to the training rows"
_PATIENCE = 50
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
    validation: float | None = None

    @property
    def setup(self) -> str:
        if self.validation is not None:
            return (
                f"`LGBMClassifier(learning_rate={self.learning_rate})`, up to {self.rounds:,} rounds, stopped early on "
                f"{self.validation:.0%} of the training rows; " + _COUNTS.format("objective='poisson'")
            )
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

        settings = {key: value for key, value in self.configuration.items() if key not in ("rounds", "validation")}
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
        model.set_params(**settings)
        x, y = data.x.numpy(), data.y.numpy()
        if self.validation is None:
            model.fit(x, y, callbacks=[checkpoint])
        else:
            stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
            train, rest = held_out(y, self.validation, budget.seed, stratify=not counts)
            model.fit(x[train], y[train], eval_set=[(x[rest], y[rest])], callbacks=[stop])
        callback(predictor(model.booster_), rounds=int(model.best_iteration_ or self.rounds))


@dataclass(frozen=True)
class CatBoost(Method):
    """CatBoost, whose defaults are its authors' recommendation."""

    kinds: tuple[str, ...] = ("classes", ORDERED, COUNTS)
    packages: tuple[str, ...] = ("catboost",)

    @property
    def setup(self) -> str:
        return "`CatBoostClassifier()`, 1,000 rounds; " + _COUNTS.format("loss_function='Poisson'")

    def fit(self, data: TrainingData, budget: Budget, callback: Callback) -> None:
        import catboost

        options = {
            "random_seed": budget.seed,
            "thread_count": budget.threads,
            "verbose": False,
            "allow_writing_files": False,
        }
        x, y = data.x.numpy(), data.y.numpy()
        if data.kind == COUNTS:
            regressor = catboost.CatBoostRegressor(loss_function="Poisson", **options).fit(x, y)
            callback(from_rates(lambda new: regressor.predict(new, prediction_type="Exponent"), data))
        else:
            model = catboost.CatBoostClassifier(**options).fit(x, y)
            callback(from_numpy(model.predict_proba))


def held_out(y: Any, share: float, seed: int, *, stratify: bool) -> Any:
    """Rows to learn from and rows to stop by, with one of each label among the former."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(y))
    frequent = stratify and np.unique(y, return_counts=True)[1].min() > 1
    return train_test_split(rows, test_size=share, random_state=seed, stratify=y if frequent else None)


METHODS: list[Method] = [
    HistogramBoosting("boosting (scikit-learn)", "gradient boosting"),
    HistogramBoosting(
        "boosting (scikit-learn), early stopping", "gradient boosting", importance=2, early_stopping=True
    ),
    LightGBM("boosting (LightGBM)", "gradient boosting"),
    LightGBM(
        "boosting (LightGBM), early stopping",
        "gradient boosting",
        importance=2,
        rounds=2000,
        learning_rate=0.05,
        validation=0.2,
    ),
    CatBoost("boosting (CatBoost)", "gradient boosting", importance=2),
]

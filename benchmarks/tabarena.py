"""This package as a model of TabArena, by its own interface, and on files that you have through its own harness.

``GaussianProcessModel`` is an ``AbstractModel`` of AutoGluon, as every model on that board is: TabArena bags it, times it and
scores it like the others, on tasks of OpenML that it loads or on yours. ``pip install tabarena`` brings what this needs;
nothing else of the benchmarks does.

    python -m benchmarks.tabarena data.csv --folds 3     # the target is the last column, data.csv.sha256 its checksum

fits it to each fold by TabArena's ``AGModelWrapper`` and prints the metric that the board uses. To enter a run on its tasks,
register ``configurations()`` as TabArena's notes on adding a model say.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from benchmarks.workloads.local import verify
from itergp.errors import InputError
from itergp.sklearn import GPClassifier, GPRegressor

_SHARE = 0.9  # of the time limit, for the fit: what comes after it takes some, too
_FEWEST_LABELS = 20  # numbers of more values than these are a regression
_BYTES = 4.0  # of a value
_COLUMNS = 1_000  # vectors of all rows that a fit may hold, an upper bound
METRICS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "root_mean_squared_error"}
"""What TabArena scores by."""


class _NotInstalled:
    """In place of AutoGluon's base class, where that is not installed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise InputError(_absent("autogluon.core"))


def _absent(package: str) -> str:
    return f"TabArena's interface must be installed to use it. Got no {package}. Run `pip install tabarena`."


try:
    from autogluon.core.models import AbstractModel
except ImportError:
    AbstractModel: Any = _NotInstalled


class GaussianProcessModel(AbstractModel):
    """``GPClassifier`` or ``GPRegressor`` on the table as it is; hyperparameters are arguments of these.

    Gaps, levels and numbers go in as they are, and what AutoGluon holds out of a fold is not looked at: kernels are chosen
    within the training rows. The time limit is that of ``itergp.fit``; threads are as many as AutoGluon gives.
    """

    ag_key = "ITERGP"
    ag_name = "itergp"
    seed_name = "random_state"
    _supported_problem_types = ("binary", "multiclass", "regression")
    _default_auxiliary_params_extra: ClassVar[dict[str, Any]] = {"valid_raw_types": ["int", "float", "category"]}
    default_resources_physical_cores_only = True

    def _fit(
        self,
        X: pd.DataFrame,
        y: pd.Series,
        time_limit: float | None = None,
        num_cpus: int = 1,
        sample_weight: Any = None,
        **_: Any,
    ) -> None:
        """Fits; see AutoGluon's ``AbstractModel``."""
        X, params = self.preprocess(X, is_train=True), self._get_model_params()
        if time_limit is not None:
            given = params.get("fit_options") or {}
            params["fit_options"] = {"time_limit": _SHARE * time_limit} | given
        kind = GPRegressor if self.problem_type == "regression" else GPClassifier
        weights = None if sample_weight is None else np.asarray(sample_weight)
        threads = torch.get_num_threads()
        torch.set_num_threads(max(int(num_cpus), 1))
        try:
            self.model = kind(**params).fit(X, np.asarray(y), sample_weight=weights)
        finally:
            torch.set_num_threads(threads)

    def _predict_proba(self, X: pd.DataFrame, **kwargs: Any) -> np.ndarray:
        """Probabilities by AutoGluon's numbers of classes, with none for a class that a fold did not have; or means."""
        X = self.preprocess(X, **kwargs)
        if self.problem_type == "regression":
            return np.asarray(self.model.predict(X))
        probs, labels = self.model.predict_proba(X), np.asarray(self.model.classes_, dtype=int)
        found = np.zeros((len(X), max(int(self.num_classes or 0), int(labels.max()) + 1)))
        found[:, labels] = probs
        return self._convert_proba_to_unified_form(found)

    @classmethod
    def _estimate_memory_usage_static(
        cls, *, X: pd.DataFrame, num_classes: int | None = 1, hyperparameters: dict | None = None, **_: Any
    ) -> int:
        """Bytes of a fit, so that folds that run at the same time fit into memory: the search space, and what PyTorch takes."""
        return int(1e9 + _BYTES * len(X) * (_COLUMNS + 3.0 * X.shape[1] + 10.0 * max(int(num_classes or 1), 1)))


def random_configurations(count: int) -> list[dict[str, Any]]:
    """Hyperparameters for the board's tuned entry: kernels by name, or the choice among them, and how they are learned."""
    rng, kernels = np.random.RandomState(0), ("auto", "matern32", "matern52", "rbf", "laplacian")
    return [
        {
            "kernel": kernels[rng.randint(len(kernels))],
            "max_iterations": int(rng.randint(25, 151)),
            "fit_options": {"learning_rate": float(10.0 ** rng.uniform(-1.3, -0.3))},
        }
        for _ in range(count)
    ]


def configurations() -> Any:
    """TabArena's generator of experiments: the default, and random configurations as many as are asked for.

    Raises:
        InputError: If TabArena is not installed.
    """
    if importlib.util.find_spec("tabarena") is None:
        raise InputError(_absent("tabarena"))
    from tabarena.utils.config_utils import CustomAGConfigGenerator

    return CustomAGConfigGenerator(GaussianProcessModel, random_configurations, manual_configs=[{}])


def problem_type(target: pd.Series) -> str:
    """``"binary"``, ``"multiclass"`` or ``"regression"``, as TabArena calls them."""
    count = target.nunique()
    if pd.api.types.is_numeric_dtype(target) and count > _FEWEST_LABELS:
        return "regression"
    return "binary" if count == 2 else "multiclass"


def folds_of(frame: pd.DataFrame, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows, with every class in each fold in the same share."""
    from sklearn.model_selection import KFold, StratifiedKFold

    target = frame[frame.columns[-1]]
    kind = KFold if problem_type(target) == "regression" else StratifiedKFold
    return list(kind(folds, shuffle=True, random_state=seed).split(frame, target.astype(str)))


def run(path: Path, folds: int, seed: int, time_limit: float | None, threads: int) -> list[dict[str, float]]:
    """Errors, lower is better, and seconds on every fold of a file.

    Args:
        path: CSV with the target as its last column, and its checksum beside it.
        folds: How many.
        seed: Of the folds, and of the model.
        time_limit: Seconds of a fit.
        threads: Of a fit.

    Raises:
        InputError: If TabArena is not installed, or the file has no checksum or another.
    """
    if importlib.util.find_spec("tabarena") is None:
        raise InputError(_absent("tabarena"))
    from autogluon.core.metrics import get_metric
    from tabarena.benchmark.exec_models import AGModelWrapper

    verify(path)
    frame = pd.read_csv(path, skipinitialspace=True, na_values="?")
    frame = frame[frame[frame.columns[-1]].notna()].reset_index(drop=True)
    x, y = frame.drop(columns=frame.columns[-1]), frame[frame.columns[-1]]
    kind = problem_type(y)
    metric, found = get_metric(METRICS[kind], problem_type=kind), []
    for train, test in folds_of(frame, folds, seed):
        wrapper = AGModelWrapper(
            GaussianProcessModel,
            {"random_state": seed},
            fit_kwargs={"num_cpus": threads, "num_gpus": 0, "time_limit": time_limit},
            problem_type=kind,
            eval_metric=metric,
        )
        made = wrapper.fit_custom(x.iloc[train], y.iloc[train], x.iloc[test], split_seed=seed)
        needs = made["predictions"] if made["probabilities"] is None else made["probabilities"]
        error = _error(metric, kind, wrapper, y.iloc[test], needs)
        found.append({"error": error, "fit_seconds": made["time_train_s"], "predict_seconds": made["time_infer_s"]})
    return found


def _error(metric: Any, kind: str, wrapper: Any, y: pd.Series, predicted: Any) -> float:
    """By AutoGluon's metric, whose classes are numbers."""
    if kind == "regression":
        return float(metric.error(y, predicted))
    codes = wrapper.transform_y(y)
    probs = wrapper.transform_y_pred_proba(predicted)
    values = probs.to_numpy()
    return float(metric.error(codes, values[:, 1] if kind == "binary" and values.ndim == 2 else values))


def main(words: Sequence[str] | None = None) -> int:
    """Parses the command line, runs, prints; returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.tabarena", description=__doc__, formatter_class=form)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV, the target as its last column")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, help="seconds of a fit; default none")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(words)
    try:
        for path in options.files:
            found = run(path, options.folds, options.seed, options.time_limit, options.threads)
            errors, seconds = ([fold[name] for fold in found] for name in ("error", "fit_seconds"))
            spread = np.std(errors, ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else float("nan")
            name = METRICS[problem_type(pd.read_csv(path, skipinitialspace=True, na_values="?").iloc[:, -1])]
            print(f"{path.stem}: error by {name} {np.mean(errors):.4f} ± {spread:.4f}, {np.mean(seconds):.1f} s a fit")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``itergp fit``: from a table to a saved model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from itergp.cli.tables import read_table, require_columns, require_estimators
from itergp.errors import InputError

# task -> name of the estimator
TASKS = {
    "classification": "GPClassifier",
    "counts": "GPCountRegressor",
    "ordinal": "GPOrdinalClassifier",
    "regression": "GPRegressor",
}
_MAX_CLASSES = 20


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "fit", help="learn from a CSV or Parquet table and save the model"
    )
    parser.add_argument("data", type=Path, help="CSV or Parquet file with one row per observation")
    parser.add_argument("--target", required=True, help="column to predict")
    parser.add_argument("--task", choices=("auto", *TASKS), default="auto", help="default: by the target's values")
    parser.add_argument("--levels", nargs="+", metavar="LABEL", help="labels of --task ordinal, lowest first")
    parser.add_argument("--features", nargs="+", metavar="COLUMN", help="columns to predict from; default all others")
    parser.add_argument("--drop", nargs="+", metavar="COLUMN", default=[], help="columns to leave out")
    parser.add_argument("--weights", metavar="COLUMN", help="column of sample weights")
    parser.add_argument("--exposure", metavar="COLUMN", help="column of exposures of --task counts")
    parser.add_argument("--save", type=Path, help="where to save the model")
    parser.add_argument("--kernel", default="matern32", help="matern12, matern32, matern52, rbf, laplacian, ...")
    parser.add_argument("--noise", help="of regression: gaussian, student_t, ...; of counts: poisson, ...")
    parser.add_argument("--max-iterations", type=int, default=50, help="steps of learning")
    parser.add_argument("--test-size", type=float, default=0.2, help="share of rows held out to judge by; 0 for none")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out rows and of learning")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Learns, judges on held-out rows, adds those rows to the posterior, saves."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    estimators = require_estimators()
    table = read_table(options.data)
    X, y, rows = _columns(table, options)
    task = guess_task(y) if options.task == "auto" else options.task
    estimator = _estimator(estimators, task, options)
    train, test = _split(len(y), options)
    started = time.perf_counter()
    estimator.fit(X.iloc[train], y.iloc[train], **_take(rows, train))
    learned = time.perf_counter() - started
    console.print(f"{TASKS[task]}: {task}, {len(y):,} rows, {X.shape[1]} columns" + _classes(estimator))
    if options.task == "auto":
        console.print(f"The task was guessed from the target {options.target!r}; say --task to choose it.")
    console.print(f"Learned from {len(train):,} rows in {learned:.1f} s, {estimator.kernel_passes_} kernel passes.")
    if len(test):
        for name, value in _scores(estimator, task, X.iloc[test], y.iloc[test], _take(rows, test)):
            console.print(f"  {name} on {len(test):,} held-out rows: {value:.4f}")
        estimator.partial_fit(X.iloc[test], y.iloc[test], **_take(rows, test))
    console.print(f"Now conditioned on all {len(y):,} rows.\n{estimator.model_.solution.trace.explain()}")
    if options.save is not None:
        estimator.save(options.save)
        console.print(f"Saved to {options.save}. Predict with: itergp predict {options.save} NEW.csv")
    return 0


def guess_task(y: Any) -> str:
    """The task that a target column calls for.

    Text, booleans and up to 20 different whole numbers are classes; more, if not negative, are counts; the rest are real.
    """
    kind = y.dtype.kind if isinstance(y.dtype, np.dtype) else "O"
    if kind not in "iuf":
        return "classification"
    values = y.dropna().to_numpy()
    whole = bool((values == np.floor(values)).all())
    if whole and len(np.unique(values)) <= _MAX_CLASSES:
        return "classification"
    return "counts" if whole and bool((values >= 0).all()) else "regression"


def _columns(table: Any, options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Features, targets, and what else is known of the rows: keywords of ``fit`` with columns."""
    require_columns(table, [options.target], "the target")
    require_columns(table, [*(options.features or []), *options.drop], "the features")
    rows = {
        name: column
        for name, column in (("sample_weight", options.weights), ("exposure", options.exposure))
        if column is not None
    }
    require_columns(table, list(rows.values()), "the weights and exposures")
    used = [options.target, *options.drop, *rows.values()]
    features = options.features or [name for name in table.columns if name not in used]
    if not features:
        raise InputError("The data must have columns to predict from. Got the target alone. Check --drop and the file.")
    X = table[features]
    text = [name for name in features if X[name].dtype.kind not in "iufb"]
    if text:
        raise InputError(
            f"Columns to predict from must be numbers. Got text or dates in {', '.join(map(repr, text[:5]))}. "
            f"Encode them, or leave them out with --drop {' '.join(text[:5])}."
        )
    y = table[options.target]
    y = y.astype(str) if options.levels is not None else y
    return X.astype("float64"), y, {name: table[column] for name, column in rows.items()}


def _estimator(estimators: Any, task: str, options: argparse.Namespace) -> Any:
    arguments = {
        "kernel": options.kernel,
        "max_iterations": options.max_iterations,
        "device": options.device,
        "random_state": options.seed,
        "verbose": not options.quiet,
    }
    if options.levels is not None:
        if task != "ordinal":
            raise InputError(
                f"`--levels` must be left out for {task}. Got {options.levels}. It belongs to --task ordinal."
            )
        arguments["levels"] = options.levels
    if options.exposure is not None and task != "counts":
        raise InputError(
            f"`--exposure` must be left out for {task}. Got {options.exposure!r}. It belongs to --task counts."
        )
    if options.noise is not None:
        names = {"regression": "noise", "counts": "distribution"}
        if task not in names:
            raise InputError(f"`--noise` must be left out for {task}. Got {options.noise!r}. Classes have no noise.")
        arguments[names[task]] = options.noise
    return getattr(estimators, TASKS[task])(**arguments)


def _split(num_rows: int, options: argparse.Namespace) -> tuple[Any, Any]:
    if not 0.0 <= options.test_size < 1.0:
        raise InputError(
            f"`--test-size` must be at least 0 and below 1. Got {options.test_size}. 0.2 holds out a fifth."
        )
    order = np.random.default_rng(options.seed).permutation(num_rows)
    count = round(options.test_size * num_rows)
    return np.sort(order[count:]), np.sort(order[:count])


def _take(columns: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {name: column.iloc[rows] for name, column in columns.items()}


def _classes(estimator: Any) -> str:
    return f", {len(estimator.classes_)} classes" if hasattr(estimator, "classes_") else ""


def _scores(estimator: Any, task: str, X: Any, y: Any, rows: dict[str, Any]) -> list[tuple[str, float]]:
    if hasattr(estimator, "classes_"):
        weights = rows.get("sample_weight")
        known = np.isin(y, estimator.classes_)
        X, y, weights = X[known], y[known], None if weights is None else weights[known]
        chosen = estimator.predict_proba(X)[np.arange(len(y)), np.searchsorted(estimator.classes_, y)]
        loss = -np.average(np.log(chosen), weights=weights)
        return [("accuracy", estimator.score(X, y, weights)), ("log loss", float(loss))]
    exposed = {name: column for name, column in rows.items() if name == "exposure"}
    low, high = estimator.predict_quantiles(X, (0.05, 0.95), **exposed).T
    inside = float(np.mean((y.to_numpy() >= low) & (y.to_numpy() <= high)))
    name = "R^2" if task == "regression" else "share of deviance explained"
    return [(name, estimator.score(X, y, **rows)), ("share inside the 90 % interval", inside)]

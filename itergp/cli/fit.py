"""``itergp fit``: from a table to a saved model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from itergp.cli.tables import read_table, require_columns, require_room
from itergp.errors import InputError

# task -> name of the estimator
TASKS = {
    "classification": "GPClassifier",
    "counts": "GPCountRegressor",
    "ordinal": "GPOrdinalClassifier",
    "regression": "GPRegressor",
    "survival": "GPSurvival",
}


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
    parser.add_argument(
        "--event",
        metavar="COLUMN",
        help="column of --task survival: 1 if the event was observed at the target's time, 0 if not",
    )
    parser.add_argument("--save", type=Path, help="where to save the model")
    parser.add_argument("--kernel", default="auto", help="default: by held-out rows; or matern32, laplacian, ...")
    parser.add_argument("--noise", help="of regression: gaussian, ...; of counts: poisson, ...; of times: weibull, ...")
    parser.add_argument("--max-iterations", type=int, default=50, help="steps of learning")
    parser.add_argument("--test-size", type=float, default=0.2, help="share of rows held out to judge by; 0 for none")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out rows and of learning")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Learns, judges on held-out rows, adds those rows to the posterior, saves."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    estimators = require_room("itergp.sklearn")
    table = read_table(options.data)
    X, y, rows = _columns(table, options)
    guess = _guess(y, options)
    task, noise = guess.task, options.noise or guess.likelihood
    X = _understood(X)
    estimator = _estimator(estimators, task, noise, options)
    train, test = _split(len(y), options)
    started = time.perf_counter()
    estimator.fit(X.iloc[train], y.iloc[train], **_take(rows, train))
    learned = time.perf_counter() - started
    console.print(f"{TASKS[task]}: {task}, {len(y):,} rows, {X.shape[1]} columns" + _classes(estimator))
    if guess.reason:
        named = f" with {guess.likelihood} likelihood (--noise)" if guess.likelihood and not options.noise else ""
        console.print(
            f"The task was guessed from the target {options.target!r}: {task}{named}, as {guess.reason}; choose by --task."
        )
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
    events = [] if options.event is None else [options.event]
    require_columns(table, events, "the event")
    used = [options.target, *options.drop, *rows.values(), *events]
    features = options.features or [name for name in table.columns if name not in used]
    if not features:
        raise InputError("The data must have columns to predict from. Got the target alone. Check --drop and the file.")
    y = table[options.target]
    tables = require_room("itergp.tables")
    tables.refuse_gaps(tables.as_target_column(y))
    y = y.astype(str) if options.levels is not None else y
    y = table[[options.event, options.target]] if events else y
    return table[features], y, {name: table[column] for name, column in rows.items()}


def _understood(X: Any) -> Any:
    """Features as all rows together say what they are, so that no part of the rows is taken for something else."""
    columns = require_room("itergp.tables").TableEncoder().fit(X).columns_  # says what is wrong by the rows of the file
    dropped = [column.name for column in columns if column.role == "dropped"]
    text = [column.name for column in columns if column.role == "categorical"]
    return X.drop(columns=dropped).astype(dict.fromkeys(text, "category"))


def _guess(y: Any, options: argparse.Namespace) -> Any:
    """What the target looks like, unless options say more."""
    tables, noise = require_room("itergp.tables"), require_room("itergp.sklearn.noise")
    if options.event is not None and options.task == "auto":
        return tables.TaskGuess("survival", None, "there is an --event")
    if (options.event is not None) != (options.task == "survival"):
        raise InputError(
            f"`--event` must be given for survival, and for nothing else. Got {options.event!r} with --task {options.task}. "
            "Name the column that says whether the event was observed, or drop it."
        )
    if options.task != "auto":
        return tables.TaskGuess(options.task, None, "")
    guess = tables.guess_task(y)
    if y.dtype.kind in "iuf" and (options.exposure is not None or options.noise in noise.COUNTS):
        return tables.TaskGuess("counts", None, "its options are those of counts")
    if y.dtype.kind in "iuf" and options.noise in noise.NOISES:
        return tables.TaskGuess("regression", None, "its options are those of regression")
    return guess


def _estimator(estimators: Any, task: str, noise: str | None, options: argparse.Namespace) -> Any:
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
    if noise is not None:
        names = {"regression": "likelihood", "counts": "distribution", "survival": "distribution"}
        if task not in names:
            raise InputError(f"`--noise` must be left out for {task}. Got {noise!r}. Classes have no noise.")
        arguments[names[task]] = noise
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
    if task == "survival":
        density = np.average(estimator.predictive_log_density(X, y), weights=rows.get("sample_weight"))
        return [("concordance", estimator.score(X, y, **rows)), ("log-density", float(density))]
    exposed = {name: column for name, column in rows.items() if name == "exposure"}
    low, high = estimator.predict_quantiles(X, (0.05, 0.95), **exposed).T
    inside = float(np.mean((y.to_numpy() >= low) & (y.to_numpy() <= high)))
    name = "R^2" if task == "regression" else "share of deviance explained"
    return [(name, estimator.score(X, y, **rows)), ("share inside the 90 % interval", inside)]

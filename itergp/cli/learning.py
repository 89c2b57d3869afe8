"""What ``itergp fit`` and ``itergp compare`` share: options, the columns they name, and the task that the target calls for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itergp.cli.tables import open_file, require_columns, require_room
from itergp.errors import InputError

# task -> name of the estimator
TASKS = {
    "classification": "GPClassifier",
    "counts": "GPCountRegressor",
    "ordinal": "GPOrdinalClassifier",
    "regression": "GPRegressor",
    "survival": "GPSurvival",
}
_NOISES = {"regression": "likelihood", "counts": "distribution", "survival": "distribution"}  # task -> argument


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says where the table is, what its columns are, and how this package learns."""
    parser.add_argument("data", type=Path, help="CSV or Parquet file with one row per observation")
    parser.add_argument("--target", required=True, help="column to predict")
    parser.add_argument("--task", choices=("auto", *TASKS), default="auto", help="default: by the target's values")
    parser.add_argument("--levels", nargs="+", metavar="LABEL", help="labels of --task ordinal, lowest first")
    parser.add_argument("--features", nargs="+", metavar="COLUMN", help="columns to predict from; default all others")
    parser.add_argument("--drop", nargs="+", metavar="COLUMN", default=[], help="columns to leave out")
    parser.add_argument("--weights", metavar="COLUMN", help="column of sample weights; a weight of 2 is a row twice")
    parser.add_argument("--exposure", metavar="COLUMN", help="column of exposures of --task counts")
    parser.add_argument(
        "--event",
        metavar="COLUMN",
        help="column of --task survival: 1 if the event was observed at the target's time, 0 if not",
    )
    parser.add_argument(
        "--group", nargs="+", metavar="COLUMN", help="columns of groups, as in mixed models: an effect of each group"
    )
    parser.add_argument(
        "--together", metavar="COLUMN", help="column whose equal values are held out together; no feature"
    )
    parser.add_argument("--sep", metavar="CHARACTER", help="what separates columns; default: found out")
    parser.add_argument("--kernel", default="auto", help="default: by held-out rows; or matern32, laplacian, ...")
    parser.add_argument("--noise", help="of regression: gaussian, ...; of counts: poisson, ...; of times: weibull, ...")
    parser.add_argument("--max-iterations", type=int, default=50, help="steps of learning")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="that a fit may take; default none")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out rows and of learning")
    parser.add_argument("--quiet", action="store_true", help="no progress")


@dataclass(frozen=True)
class Problem:
    """A table as it is to be learned from.

    Attributes:
        rows: Its rows, see ``itergp.sklearn.comparison``.
        num_columns: Columns to predict from.
        task: What is predicted.
        reason: Why, if that was guessed.
        arguments: Of the estimator, as far as options say something.
    """

    rows: Any
    num_columns: int
    task: str
    reason: str
    arguments: dict[str, Any]

    @classmethod
    def read(cls, options: argparse.Namespace) -> Problem:
        """Reads the table that options name.

        Raises:
            InputError: If options contradict each other or the table.
            MissingExtraError: If a package is not installed.
        """
        comparison = require_room("itergp.sklearn.comparison")
        X, y, known = _columns(open_file(options.data, options.sep), options)
        guess = _guess(y, options)
        X = _understood(X)
        arguments = _arguments(guess, options)
        rows, _ = comparison.as_rows(X, y, task=guess.task, levels=options.levels, **known)
        return cls(rows, len(X.columns), guess.task, guess.reason, arguments)

    def introduce(self, options: argparse.Namespace) -> str:
        """What the table was taken for, in a line or two."""
        rows = self.rows
        classes = f", {len(rows.labels)} classes" if self.task in ("classification", "ordinal") else ""
        said = f"{TASKS[self.task]}: {self.task}, {len(rows):,} rows, {self.num_columns} columns{classes}"
        if not self.reason:
            return said
        guessed = f"The task was guessed from the target {options.target!r}: {self.task}, as {self.reason}"
        return f"{said}\n{guessed}; choose by --task."


def _columns(file: Any, options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Features, targets, and what else is known of the rows: keywords with columns."""
    require_columns(file, [options.target], "the target")
    require_columns(file, [*(options.features or []), *options.drop], "the features")
    require_columns(file, options.group or [], "the groups")
    named = {"sample_weight": options.weights, "exposure": options.exposure, "groups": options.together}
    known = {name: column for name, column in named.items() if column is not None}
    require_columns(file, list(known.values()), "the weights, exposures and what is held out together")
    events = [] if options.event is None else [options.event]
    require_columns(file, events, "the event")
    used = [options.target, *options.drop, *known.values(), *events]
    features = options.features or [name for name in file.names if name not in used]
    features = [*features, *(name for name in options.group or [] if name not in features)]
    if not features:
        raise InputError("The data must have columns to predict from. Got the target alone. Check --drop and the file.")
    y = file[options.target]
    tables = require_room("itergp.tables")
    tables.refuse_gaps(tables.as_target_column(y))
    y = y.astype(str) if options.levels is not None else y
    y = file[[options.event, options.target]] if events else y
    return file.table(features), y, {name: file[column] for name, column in known.items()}


def _understood(X: Any) -> Any:
    """Features as all rows together say what they are, so that no part of the rows is taken for something else."""
    columns = require_room("itergp.tables").TableEncoder().fit(X).columns_  # says what is wrong by the rows of the file
    dropped = {column.position for column in columns if column.role == "dropped"}
    levels = {column.position for column in columns if column.role == "categorical"}
    kept = [position for position in range(len(X.columns)) if position not in dropped]
    return X.as_levels(levels).select(kept)


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
    if y.dtype.kind in "iuf" and options.noise in (*noise.NOISES, *noise.POSITIVES, "beta"):
        return tables.TaskGuess("regression", None, "its options are those of regression")
    return guess


def _arguments(guess: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the estimator; without a choice by held-out rows, the noise is what the target looks like."""
    arguments: dict[str, Any] = {
        "kernel": options.kernel,
        "max_iterations": options.max_iterations,
        "device": options.device,
        "random_state": options.seed,
    }
    if options.time_limit is not None:
        arguments["fit_options"] = {"time_limit": options.time_limit}
    if options.group is not None:
        arguments["groups"] = list(options.group)
    if options.levels is not None and guess.task != "ordinal":
        raise InputError(
            f"`--levels` must be left out for {guess.task}. Got {options.levels}. It belongs to --task ordinal."
        )
    if options.exposure is not None and guess.task != "counts":
        raise InputError(
            f"`--exposure` must be left out for {guess.task}. Got {options.exposure!r}. It belongs to --task counts."
        )
    noise = options.noise or (guess.likelihood if options.kernel != "auto" else None)
    if noise is not None:
        if guess.task not in _NOISES:
            raise InputError(f"`--noise` must be left out for {guess.task}. Got {noise!r}. Classes have no noise.")
        arguments[_NOISES[guess.task]] = noise
    return arguments

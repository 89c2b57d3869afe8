"""``itergp predict``: predictions of a saved model for the rows of a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from itergp.checks import require_module
from itergp.cli.tables import TableWriter, open_file, require_columns, require_room
from itergp.diagnostics import ProgressBar
from itergp.errors import InputError

_QUANTILES = (0.05, 0.5, 0.95)
_DIGITS = 6  # significant ones of probabilities, also of small ones


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser("predict", help="predict the rows of a table")
    parser.add_argument("model", type=Path, help="file that `itergp fit --save` or an estimator's save() wrote")
    parser.add_argument("data", type=Path, help="CSV or Parquet file with the columns that the model learned from")
    parser.add_argument("--output", type=Path, help="CSV or Parquet file to write; default CSV on standard output")
    parser.add_argument(
        "--quantiles", nargs="+", type=float, default=_QUANTILES, metavar="Q", help="of counts, real values and times"
    )
    parser.add_argument(
        "--exposure", metavar="COLUMN", help="column of exposures, of counts; default 1, which gives rates"
    )
    parser.add_argument("--with-inputs", action="store_true", help="also write the columns of the data")
    parser.add_argument("--sep", metavar="CHARACTER", help="what separates columns of the data; default: found out")
    parser.add_argument("--device", help="cpu or cuda")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Loads, predicts, writes."""
    estimators = require_room("itergp.sklearn")
    estimator = estimators.load(options.model, device=options.device)
    file = open_file(options.data, options.sep)
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        require_columns(file, list(names), "the model")
    if options.exposure is not None:
        if not isinstance(estimator, estimators.GPCountRegressor):
            raise InputError(
                f"`--exposure` must be left out for {type(estimator).__name__}. Got {options.exposure!r}. It belongs to counts."
            )
        require_columns(file, [options.exposure], "the exposures")
    done = 0
    with (
        TableWriter(options.output, file.types if options.with_inputs else {}) as writer,
        ProgressBar(enabled=None if options.output else False) as bar,
    ):
        bar.begin("predict", unit="rows", total=file.num_rows)
        for frame in file.batches():
            writer.write(_of_batch(estimator, frame, names, options))
            done += len(frame)
            bar.advance("predict", done)
    if options.output is not None:
        print(f"{done:,} predictions written to {options.output}.", file=sys.stderr)
    return 0


def _of_batch(estimator: Any, frame: Any, names: Any, options: argparse.Namespace) -> Any:
    """Predictions for some rows of the file, with their columns if these are wanted."""
    X, observation = frame if names is None else frame[list(names)], {}
    if options.exposure is not None:
        observation["exposure"] = frame[options.exposure]
        X = X.drop(columns=options.exposure) if names is None else X
    predictions = predict(estimator, X, options.quantiles, **observation)
    if options.with_inputs:
        pandas = require_module("pandas", "Reading tables", "tables")
        predictions = pandas.concat([frame, predictions], axis=1)
    return predictions


def predict(estimator: Any, X: Any, quantiles: tuple[float, ...], **observation: Any) -> Any:
    """Predictions as a data frame: class and probabilities; mean, deviation and quantiles; or of times median and quantiles.

    Args:
        estimator: A fitted one.
        X: Inputs.
        quantiles: Levels.
        **observation: ``exposure`` of counts.
    """
    pandas = require_module("pandas", "Reading tables", "tables")
    if hasattr(estimator, "classes_"):
        probs = estimator.predict_proba(X)
        columns = {"prediction": estimator.classes_[probs.argmax(-1)]}
        shown = {f"probability_{c}": _rounded(probs[:, i]) for i, c in enumerate(estimator.classes_)}
        return pandas.DataFrame(columns | shown)
    levels = estimator.predict_quantiles(X, quantiles, **observation)
    if hasattr(estimator, "predict_survival_function"):
        columns = {"prediction": estimator.predict(X)}
    else:
        columns = dict(zip(("prediction", "std"), estimator.predict(X, return_std=True, **observation), strict=True))
    return pandas.DataFrame(columns | {f"quantile_{q:g}": levels[:, i] for i, q in enumerate(quantiles)})


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]

"""``itergp fit``: from a table to a saved model."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from itergp.checks import require_module
from itergp.cli.learning import TASKS, Problem, add_options
from itergp.cli.progress import FitProgress
from itergp.cli.tables import require_room
from itergp.errors import InputError

_LEGEND = """\
(log-density: of what was observed, the higher the better; 90 % covers: how many targets are among what should hold nine
in ten; baseline: knows no column; ±: one standard error)"""


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "fit", help="learn from a CSV or Parquet table and save the model"
    )
    add_options(parser)
    parser.add_argument("--save", type=Path, help="where to save the model")
    parser.add_argument("--report", type=Path, help="where to write what was found, as one HTML file")
    parser.add_argument("--test-size", type=float, default=0.2, help="share of rows held out to judge by; 0 for none")
    parser.add_argument(
        "--verbose", action="store_true", help="also say what was tried, and how the posterior was found"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Learns, judges on held-out rows, reports, adds those rows to the posterior, saves."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not 0.0 <= options.test_size < 1.0:
        raise InputError(
            f"`--test-size` must be at least 0 and below 1. Got {options.test_size}. 0.2 holds out a fifth."
        )
    if options.report is not None:
        _require_reports(options.report)
    problem = Problem.read(options)
    comparison = require_room("itergp.sklearn.comparison")
    train, test = comparison.hold_out(problem.rows, options.test_size, options.seed)
    estimator, seconds = _fit(problem, train, options)
    console.print(problem.introduce(options))
    console.print(f"Learned from {len(train):,} rows in {seconds:.1f} s.")
    if len(test):
        methods = [comparison.Fitted(estimator), comparison.Baseline()]
        judged = comparison.judge(train, test, methods, seed=options.seed)
        console.print(f"On {len(test):,} held-out rows, which it had not seen:\n{judged.table(with_cost=False)}")
        console.print(_LEGEND)
    if options.report is not None:  # before the rows that judge are no longer unseen
        comparison.write_report(estimator, options.report, test)
        console.print(f"Report written to {options.report}.")
    if len(test):
        comparison.add_rows(estimator, test)
        console.print(f"Predictions are now made from all {len(problem.rows):,} rows.")
    if options.verbose:
        console.print(_details(estimator))
    if options.save is not None:
        estimator.save(options.save)
        console.print(f"Saved to {options.save}. Predict with: itergp predict {options.save} NEW.csv")
    elif options.report is None:
        console.print("Nothing was saved. --save FILE keeps the model, --report FILE.html shows what was found.")
    return 0


def _fit(problem: Problem, train: Any, options: argparse.Namespace) -> tuple[Any, float]:
    """A fitted estimator, and the seconds that took."""
    comparison = require_room("itergp.sklearn.comparison")
    arguments = problem.arguments | ({"levels": options.levels} if options.levels is not None else {})
    solver = options.verbose and not options.quiet and sys.stderr.isatty()  # whose bars speak of passes and gaps
    estimator = getattr(require_room("itergp.sklearn"), TASKS[problem.task])(**arguments, verbose=solver)
    started = time.perf_counter()
    with FitProgress(enabled=not options.quiet and not solver) as progress:
        given = estimator.fit_options
        estimator.set_params(fit_options={**(given or {}), "callback": progress})
        try:
            comparison.fit_estimator(estimator, train)
        finally:
            estimator.set_params(fit_options=given)
    return estimator, time.perf_counter() - started


def _require_reports(path: Path) -> None:
    """Refuses a report that could not be written, before anything is learned.

    Raises:
        InputError: If there is no such folder.
        MissingExtraError: If a package is not installed.
    """
    require_module("matplotlib", "A report", "plot")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(
            f"`--report` must be a file in a folder that exists. Got {str(path)!r}. Choose another name, or make the folder."
        )


def _details(estimator: Any) -> str:
    """What was tried, and how the posterior was found."""
    solution, tried = estimator.model_.solution, estimator.comparison_
    lines = [] if tried is None else [f"Structures compared on {tried.num_held_out:,} rows:", str(tried)]
    return "\n".join([*lines, f"{estimator.kernel_passes_} kernel passes in all.", str(solution.trace.explain())])

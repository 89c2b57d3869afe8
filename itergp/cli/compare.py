"""``itergp compare``: this package, boosted trees and a linear model on the same held-out rows of a table."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from itergp.cli.learning import Problem, add_options
from itergp.cli.tables import require_room


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare", help="compare with boosting and linear models on a CSV or Parquet table, by cross-validation"
    )
    add_options(parser)
    parser.add_argument("--folds", type=int, default=5, help="parts of the rows, each held out once; default 5")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compares and prints."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    problem = Problem.read(options)
    comparison = require_room("itergp.sklearn.comparison")

    def say(method: str, fold: int) -> None:
        if not options.quiet:
            print(f"{method}, part {fold + 1} of {options.folds} ...", file=sys.stderr, flush=True)

    methods = comparison.standard_methods(problem.task, problem.arguments)
    found = comparison.cross_validate(
        problem.rows, methods, num_folds=options.folds, seed=options.seed, reason=problem.reason, on_progress=say
    )
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    console.print(problem.introduce(options))
    console.print(
        f"On all {found.num_rows:,} rows, each predicted by a fit without its part of {options.folds}:\n{found}"
    )
    return 0

"""Real tables: this package by its defaults, and what a practitioner would use instead, on the same rows.

    python -m benchmarks.tables --quick            # five small tables, one seed
    python -m benchmarks.tables                    # all tables, three seeds: hours
    python -m benchmarks.tables --report-only      # the page from the results alone

It goes on where it was ended: one line of JSON for each table, method and seed, which is never changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.suite import store
from benchmarks.tables import runner
from benchmarks.tables.catalogue import sources
from benchmarks.tables.methods import methods, missing
from benchmarks.tables.report import page
from itergp.errors import InputError

_QUICK = ("titanic", "claims", "wages", "poverty", "veterans")
_RESULTS = Path("build") / "bench" / "tables.jsonl"


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is left to run, and writes the page; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        if not options.report_only:
            runner.run_all(jobs(options), options.results, options.most_seconds)
        text = page(store.load([options.results]), options.note)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.tables", description=__doc__, formatter_class=form)
    parser.add_argument(
        "--quick", action="store_true", help="five small tables, one seed, 20 s for each fit of this package"
    )
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the splits; default 0 1 2")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows at most; 0 for all; default 10,000")
    parser.add_argument("--time-limit", type=float, help="seconds of a fit of this package; default none")
    parser.add_argument(
        "--most-seconds", type=float, default=1_800.0, help="after which any run is ended; default 1,800"
    )
    parser.add_argument("--results", type=Path, default=_RESULTS, help=f"file of results; default {_RESULTS}")
    parser.add_argument("--output", type=Path, help="where to write the page; default standard output")
    parser.add_argument("--note", default="", help="a sentence for the head of the page")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    return parser


def jobs(options: argparse.Namespace) -> list[runner.Job]:
    """What is to be run, every table's first seed before the second; methods that are not installed are left out.

    Raises:
        InputError: If a name is unknown.
    """
    limit = options.time_limit if options.time_limit is not None else 20.0 if options.quick else None
    known, every = methods(limit), sources()
    tables = _chosen("table", options.tables or (_QUICK if options.quick else None), list(every))
    names = [name for name in _chosen("method", options.methods, list(known)) if not missing(known[name])]
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    return [
        runner.Job(table, name, seed, options.rows, limit)
        for seed in seeds
        for table in tables
        if not every[table].missing
        for name in names
        if every[table].task in known[name].tasks
    ]


def _chosen(what: str, wanted: Sequence[str] | None, known: list[str]) -> list[str]:
    if unknown := sorted(set(wanted or ()) - set(known)):
        raise InputError(f"Every {what} must be one of {known}. Got {unknown}. Correct the name.")
    return known if wanted is None else list(wanted)


if __name__ == "__main__":
    sys.exit(main())

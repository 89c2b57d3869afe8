"""Measures how good the posterior is, and draws it.

``python -m benchmarks.posterior`` adds lines to ``benchmarks/results/posterior.jsonl``, writes tables beside it, and draws the figures of the
page on the posterior; what is in the file is not measured again. Seconds are the processor's, one thread. Parts: ``variance`` (over the exact one, against time), ``laplace``
(the same beside GPBoost), ``calibration`` (test rows and rows unlike them),
``defaults`` (the default prediction and the mode plugged in, three splits), ``moons`` (far from the data), ``coverage`` (of intervals, of what is drawn from the model), ``figures``, with the tables. ``--quick`` writes
to ``build/posterior``:

    python -m benchmarks.posterior --quick                 # a small data set, seconds
    python -m benchmarks.posterior --only variance         # minutes
    python -m benchmarks.posterior --only figures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.posterior import calibration, coverage, defaults, figures, moons, rivals, tables, variance
from benchmarks.posterior.results import Results

RESULTS = Path(__file__).parents[1] / "results" / "posterior.jsonl"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
PARTS: dict[str, Callable[[Results], None]] = {
    "variance": variance.run,
    "laplace": rivals.run,
    "calibration": calibration.run,
    "defaults": defaults.run,
    "moons": moons.run,
    "coverage": coverage.run,
}
_SMALL, _FEW_ROWS = ("breast cancer",), 120
QUICK: dict[str, Callable[[Results], None]] = {
    "variance": lambda results: variance.run(
        results, _SMALL, _FEW_ROWS, settings={torch.float64: [(16, 0), (1, 8), (16, 8)], torch.float32: [(16, 8)]}
    ),
    "laplace": lambda results: rivals.run(
        results, _SMALL, _FEW_ROWS, settings=[("vecchia", 10)], ours=[(16, 0), (16, 8)]
    ),
    "calibration": lambda results: calibration.run(results, _SMALL, _FEW_ROWS),
    "defaults": lambda results: defaults.run(results, _SMALL, (0,), _FEW_ROWS),
    "moons": lambda results: moons.run(results, (60,), max_iterations=5),
    "coverage": lambda results: coverage.run(results, rows=30, repeats=2),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*PARTS, "figures"], action="append", help="parts to run; default all")
    parser.add_argument("--quick", action="store_true", help="small data, to see that it works")
    parser.add_argument("--results", type=Path, help="file of the lines")
    parser.add_argument("--images", type=Path, help="folder of the figures")
    options = parser.parse_args(arguments)
    small = Path("build/posterior")
    results = Results(options.results or (small / "posterior.jsonl" if options.quick else RESULTS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, part in (QUICK if options.quick else PARTS).items():
            if options.only is None or name in options.only:
                part(results)
    finally:
        torch.set_num_threads(threads)
    if options.only is None or "figures" in options.only:
        tables.write(results, results.path.with_suffix(".md"))
        figures.draw_all(results, options.images or (small if options.quick else IMAGES))


if __name__ == "__main__":
    main()

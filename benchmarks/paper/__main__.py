"""Regenerates the experiments of the paper: figure, tables in Markdown and LaTeX, raw figures.

``python -m benchmarks.paper`` writes to ``benchmarks/results/paper/``. Parts: ``poisson`` (the method on one input), ``recycling``
(cost of recycling and compression), ``classification`` (against run time). At full size the last takes hours on a CPU; it adds to
what is in the folder, where only what is measured again is replaced. ``--quick`` writes to ``build/paper``:

    python -m benchmarks.paper --quick                                   # everything small, minutes
    python -m benchmarks.paper --only classification --rows 100000 --device cuda --seeds 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.paper import classification, poisson, recycling

RESULTS = Path(__file__).parent.parent / "results" / "paper"
PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "poisson": poisson.run,
    "recycling": recycling.run,
    "classification": classification.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="parts to run; default all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions with other data or other random numbers")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows of the mixture")
    parser.add_argument("--data", choices=("mixture", "mnist"), nargs="+", default=["mixture", "mnist"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--svgp-seconds", type=float, default=120.0, help="training time of each SVGP")
    parser.add_argument("--results", type=Path, help="where to write")
    options = parser.parse_args()
    if options.results is None:
        options.results = Path("build/paper") if options.quick else RESULTS
    options.results.mkdir(parents=True, exist_ok=True)
    for name in options.only or PARTS:
        figures = PARTS[name](options, options.results)
        (options.results / f"{name}.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

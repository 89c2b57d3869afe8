"""Size: time, memory and accuracy as rows grow, each measurement in a process of its own.

``python -m benchmarks.scale`` appends a line of JSON per measurement to ``benchmarks/results/scale.jsonl``, skips what is there,
and writes ``benchmarks/results/scale.md`` and ``docs/images/scale.png`` from it. At full size it takes about an hour on two cores;
``--only kernel`` and the like choose, ``--largest`` leaves out what has more rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale import items, maps, pairs
from benchmarks.scale.report import write_report

RESULTS = Path(__file__).parents[1] / "results"
TIME_LIMIT = 1800
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
APPROXIMATIONS = ("laplace", "variational")
LARGEST_FULL = 100_000  # rows, of the full method in the plot of cost
MAP_SIZES = (1_000, 5_000, 20_000, 100_000, 200_000)
OF_MAPS = ("itergp", "itergp, support")
LARGEST_EXACT, LARGEST_ITERATIVE = 5_000, 20_000  # rows of maps, by dense algebra and by GPBoost's iterative method

LEAF_DATA = (("flights", 50_000), ("smooth", 50_000), ("flights", 307_346))
LEAF_METHODS = (("support", 1024), ("support", 4096), ("leaves", 1000), ("leaves", 2000), ("leaves", 4000))

# Group, function, arguments, rows.
PLAN: list[tuple[str, str, dict[str, Any], int]] = [
    ("kernel", "kernel_pass", {"rows": [10_000, 20_000, 40_000, 80_000]}, 80_000),
    ("mixture", "mode", {"rows": 100_000, "time_limit": 60.0}, 100_000),
    ("mixture", "full", {"rows": 100_000}, 100_000),
    ("flights", "flights_in_time", {"support": 1024}, 307_346),
    ("flights", "flights_svgp", {"seconds": 60.0}, 307_346),
    ("flights", "flights_in_time", {"support": 4096}, 307_346),
    ("flights", "flights_svgp", {"seconds": 120.0}, 307_346),
    ("million", "million", {"rows": 1_000_000}, 1_000_000),
    *(
        ("leaves", "leaves", {"data": data, "rows": n, "method": method, "size": size}, n)
        for data, n in LEAF_DATA
        for method, size in LEAF_METHODS
    ),
    *(
        ("additive", "additive", {"rows": n, "approximation": a}, n)
        for n in (100_000, 1_000_000)
        for a in APPROXIMATIONS
    ),
    *(("pairs", "pairs_pass", {"rows": n}, n) for n in (100_000, 1_000_000)),
    ("pairs", "pairs", {"rows": 100_000}, 100_000),
    *(("maps", "maps_pass", {"rows": n}, n) for n in MAP_SIZES),
    *(("maps", "maps_exact", {"rows": n}, n) for n in MAP_SIZES if n <= LARGEST_EXACT),
    *(("maps", "maps_itergp", {"rows": n, "method": m}, n) for m in OF_MAPS for n in MAP_SIZES),
    *(("maps", "maps_gpboost", {"rows": n, "inversion": "cholesky"}, n) for n in MAP_SIZES),
    *(("maps", "maps_gpboost", {"rows": n, "inversion": "iterative"}, n) for n in MAP_SIZES if n <= LARGEST_ITERATIVE),
    ("maps", "maps_gpboost", {"rows": 5_000, "approximation": "full_scale_vecchia"}, 5_000),
    ("file", "additive_file", {"rows": 1_000_000}, 1_000_000),
    ("file", "additive_file", {"rows": 10_000_000, "memory_budget": 2_500_000_000}, 10_000_000),
    *(("cost", "cost", {"rows": n, "method": "linear"}, n) for n in SIZES),
    *(("cost", "cost", {"rows": n, "method": "full"}, n) for n in SIZES if n <= LARGEST_FULL),
    *(("cost", "cost_svgp", {"rows": n}, n) for n in SIZES),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({group for group, *_ in PLAN}), help="groups; default all")
    parser.add_argument("--largest", type=int, default=max(SIZES), help="rows beyond which a measurement is left out")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of each process; cost is measured with one"
    )
    parser.add_argument("--item", nargs=2, help=argparse.SUPPRESS)  # a function and its arguments, in a child process
    options = parser.parse_args()
    if options.item:
        torch.set_num_threads(options.threads)
        room = next(room for room in (items, maps, pairs) if hasattr(room, options.item[0]))
        print(json.dumps(getattr(room, options.item[0])(**json.loads(options.item[1]))))
        return
    path = RESULTS / "scale.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["item"], json.dumps(line["arguments"])) for line in lines}
    for group, name, arguments, rows in PLAN:
        if (options.only and group not in options.only) or rows > options.largest:
            continue
        if (name, json.dumps(arguments)) in done:
            continue
        print(f"{name} {arguments} ...", flush=True)
        threads = (
            1 if group in ("additive", "cost", "file", "leaves", "maps", "pairs") else options.threads
        )  # as many as each of several jobs would have
        line = {"group": group, "item": name, "arguments": arguments, **_measured(name, arguments, threads)}
        print({key: value for key, value in line.items() if isinstance(value, (int, float))}, flush=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    write_report([json.loads(line) for line in path.read_text().splitlines()], RESULTS)


def _measured(name: str, arguments: dict[str, Any], threads: int) -> dict[str, Any]:
    """The figures of one measurement, or why there are none."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale",
        "--threads",
        str(threads),
        "--item",
        name,
        json.dumps(arguments),
    ]
    about = {"threads": threads, "machine": platform.machine(), "torch": torch.__version__}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {TIME_LIMIT} s", **about}
    if ran.returncode:
        return {
            "failed": ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else f"exit {ran.returncode}",
            **about,
        }
    return {**json.loads(ran.stdout.strip().splitlines()[-1]), **about}


if __name__ == "__main__":
    main()

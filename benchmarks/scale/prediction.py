"""Predictions of many rows: time and peak memory, from a memory-mapped file, each measurement in a process of its own.

``python -m benchmarks.scale.prediction`` writes ``benchmarks/results/prediction.md``; a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.data import smooth_binary
from benchmarks.models import given_model
from benchmarks.scale.items import peak_memory
from itergp.solvers import SubspaceNewton

RESULTS = Path(__file__).parents[1] / "results"
TASKS = ("batches", "probabilities", "mean")


def measure(task: str, rows: int, train_rows: int, rank: int) -> dict[str, float]:
    """One task on a binary model: all batches, all probabilities at once, or latent means alone."""
    data = smooth_binary(train_rows)
    model = given_model(data, 2.0, 10.0, solver=SubspaceNewton(covariance_rank=rank), memory_budget=2**28).eval()
    model.condition()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, data.train_x.shape[1]))
        for start in range(0, rows, 100_000):
            x[start : start + 100_000] = rng.normal(size=x[start : start + 100_000].shape)
        x.flush()
        x = np.load(path, mmap_mode="r")
        for _ in model.predict_batches(x[:10_000]):  # what the libraries keep for themselves
            pass
        before, begun = peak_memory(), time.perf_counter()
        if task == "batches":
            total = sum(len(part.probs) for _, part in model.predict_batches(x))
        elif task == "probabilities":
            total = len(model.predict(x).probs)
        else:
            total = len(model.latent_mean(x))
        seconds = time.perf_counter() - begun
    assert total == rows
    return {"seconds": seconds, "memory_before": before, "memory_added": peak_memory() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="test rows")
    parser.add_argument("--train-rows", type=int, default=1000, help="training rows")
    parser.add_argument("--rank", type=int, default=64, help="of the covariance")
    parser.add_argument("--only", choices=TASKS, nargs="+", default=TASKS, help="tasks; default all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write")
    parser.add_argument("--item", nargs=2, help=argparse.SUPPRESS)  # a task and its rows, in a child process
    options = parser.parse_args()
    if options.item:
        print(json.dumps(measure(options.item[0], int(options.item[1]), options.train_rows, options.rank)))
        return
    lines = [
        f"# Predictions of many rows\n\nTwo classes, {options.train_rows:,} training rows, covariance of rank {options.rank}, "
        "inputs in a memory-mapped file. Peak memory before predicting, and what predicting added, in GiB.\n",
        "| task | test rows | seconds | rows per second | memory before | added |",
        "|---|---|---|---|---|---|",
    ]
    for task in options.only:
        for rows in options.rows:
            sizes = ["--train-rows", str(options.train_rows), "--rank", str(options.rank)]
            command = [sys.executable, "-m", "benchmarks.scale.prediction", *sizes, "--item", task, str(rows)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(ran.stdout.splitlines()[-1])
            speed = rows / found["seconds"]
            lines.append(
                f"| {task} | {rows:,} | {found['seconds']:.1f} | {speed:,.0f} | {found['memory_before']:.2f} | "
                f"{found['memory_added']:.2f} |"
            )
            print(lines[-1], flush=True)
    (options.results / "prediction.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

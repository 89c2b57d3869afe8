"""Peak memory and time of each process when rows are divided among processes, and whether the answer stays the same.

``python -m benchmarks.scale.distributed`` starts itself by torchrun for 1, 2, ... processes on this machine, for the kernel kept in
memory, evaluated again in every pass, and at the columns of a support alone, and writes ``benchmarks/results/distributed.md``.
Peak memory is that of the operating system (``ru_maxrss``), with and without what the imports alone take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import itergp
from benchmarks.data import mixture
from benchmarks.models import given_model
from itergp.solvers import LinearTimeNewton, SubspaceNewton

RESULTS = Path(__file__).parents[1] / "results"
BUDGETS = {"kept": 16 * 2**30, "evaluated again": 64 * 2**20, "linear time": 16 * 2**30}
_SUPPORT, _MORE_ROWS = 512, 5  # of linear time, which one divides when rows are many


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def worker(rows: int, mode: str, rank: int, out: Path) -> None:
    """One of the processes; the first writes what all found."""
    imported = peak()
    if torch.distributed.is_torchelastic_launched():
        dist.init_process_group("gloo")
    linear = mode == "linear time"
    data = mixture(rows)
    solver = LinearTimeNewton(num_support=_SUPPORT) if linear else SubspaceNewton(covariance_rank=rank)
    # The budget is that of a process: what two keep together is what one keeps alone.
    model = given_model(data, 1.0, 10.0, operator="sharded", memory_budget=BUDGETS[mode], solver=solver).eval()
    started = time.perf_counter()
    solution = model.condition()
    conditioned = time.perf_counter() - started
    with torch.no_grad():
        probs = model.predict(data.test_x).probs
    seconds = time.perf_counter() - started
    found = {
        "imported": imported,
        "peak": peak(),
        "condition": conditioned,
        "total": seconds,
        "passes": solution.kernel_passes,
        "gap per row": solution.certificate.objective_gap / rows,
        "nll": itergp.diagnostics.negative_log_likelihood(probs, data.test_y),
    }
    everyone: list[Any] = [found]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, found)
    if not dist.is_initialized() or dist.get_rank() == 0:
        out.write_text(json.dumps(everyone))
        torch.save(probs, out.with_suffix(".pt"))


def launch(rows: int, mode: str, rank: int, size: int, folder: Path) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Runs the workers; what each of them found, and the predicted probabilities."""
    out = folder / f"{size}.json"
    threads = str(max(1, (os.cpu_count() or 1) // size))
    own = [
        "-m",
        "benchmarks.scale.distributed",
        "--rows",
        str(rows),
        "--rank",
        str(rank),
        "--mode",
        mode,
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *own]
    subprocess.run(
        command, check=True, env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    )
    return json.loads(out.read_text()), torch.load(out.with_suffix(".pt"))


def table(rows: int, rank: int, sizes: list[int], modes: list[str]) -> str:
    """All runs as Markdown."""
    lines = [
        f"Mixture, 10 classes, float32, covariance rank {rank}, in linear time a support of {_SUPPORT}; {os.cpu_count()} cores.",
        "",
        "| kernel | rows | processes | peak memory of the largest, MiB | share of one process | beyond imports, share | passes | seconds "
        "| test NLL | largest and mean change of a probability |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for mode in modes:
        number = _MORE_ROWS * rows if mode == "linear time" else rows
        first: tuple[float, float, torch.Tensor] | None = None
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                found, probs = launch(number, mode, rank, size, Path(folder))
            high = max(one["peak"] for one in found)
            beyond = max(one["peak"] - one["imported"] for one in found)
            first = (high, beyond, probs) if first is None else first
            change = (probs - first[2]).abs()
            one = found[0]
            lines.append(
                f"| {mode} | {number:,} | {size} | {high:,.0f} | {high / first[0]:.0%} | {beyond / first[1]:.0%} | {one['passes']} | "
                f"{one['total']:.1f} | {one['nll']:.4f} | {float(change.max()):.1e}, {float(change.mean()):.1e} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000, help=f"{_MORE_ROWS} times as many in linear time")
    parser.add_argument("--rank", type=int, default=128, help="actions of the covariance")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mode", choices=list(BUDGETS), help="one of the ways to keep the kernel; default all")
    parser.add_argument("--out", type=Path, help="set where this is one of the processes")
    options = parser.parse_args()
    if options.out is not None:
        worker(options.rows, options.mode, options.rank, options.out)
        return
    modes = list(BUDGETS) if options.mode is None else [options.mode]
    text = table(options.rows, options.rank, options.sizes, modes)
    (RESULTS / "distributed.md").write_text(text)


if __name__ == "__main__":
    main()

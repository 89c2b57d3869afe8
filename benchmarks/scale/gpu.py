"""Kernel passes on an accelerator, next to what counted operations allow.

``python -m benchmarks.scale.gpu --device cuda --rows 100000 300000 1000000`` times one pass for ten and for a thousand columns with
blocks and, where it is installed, with KeOps. The bounds are those of ``docs/scale.md``; ``--device cpu`` works too, for a look.
"""

from __future__ import annotations

import argparse
import time

import gpytorch
import torch

from itergp.operators import make_operator
from itergp.operators.keops import MOST_COLUMNS, keops_available

# Of one H100 (SXM): float32 multiply-adds count two; special functions are exponentials and square roots.
PEAK_FLOPS, PEAK_SPECIAL = 67e12, 132 * 16 * 1.755e9
PROFILE_FLOPS, SPECIAL_PER_ENTRY = 8, 2


def bound(rows: int, columns: int, dimension: int, *, symmetric: bool) -> float:
    """Seconds that a pass takes at least: arithmetic and special functions at their peak rates, one after the other."""
    entries = rows**2 * (0.5 if symmetric else 1.0)
    flops = entries * (2 * dimension + PROFILE_FLOPS) + 2 * rows**2 * columns
    return flops / PEAK_FLOPS + entries * SPECIAL_PER_ENTRY / PEAK_SPECIAL


def seconds_per_pass(kind: str, rows: int, columns: int, dimension: int, device: str) -> float:
    """The second of two passes; the first compiles."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dimension, generator=generator).to(device)
    block = torch.randn(rows, columns, generator=generator).to(device)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5)).to(device).requires_grad_(False)
    operator = make_operator(kernel, x, kind=kind)
    for _ in range(2):
        begun = time.perf_counter()
        float(operator.matmul(block).sum())  # waits for the device
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000])
    parser.add_argument("--columns", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--dimension", type=int, default=3)
    options = parser.parse_args()
    print("| operator | rows | columns | s per pass | s at the peak of an H100 |\n|---|---|---|---|---|")
    for rows in options.rows:
        for columns in options.columns:
            keops = options.device == "cuda" and keops_available() and columns <= MOST_COLUMNS
            for kind in ("blocked", "keops") if keops else ("blocked",):
                least = bound(rows, columns, options.dimension, symmetric=kind == "blocked")
                seconds = seconds_per_pass(kind, rows, columns, options.dimension, options.device)
                print(f"| {kind} | {rows:,} | {columns:,} | {seconds:.3g} | {least:.3g} |", flush=True)


if __name__ == "__main__":
    main()

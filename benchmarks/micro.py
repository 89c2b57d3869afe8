"""Parts of the computation, timed one by one, as ratios between two revisions.

``python -m benchmarks micro`` times what is here; ``python -m benchmarks micro main HEAD`` checks both revisions out into a temporary
folder and times them in turn, with this file's code and each revision's package. The ratio is that of the medians of the
rounds; its interval is a bootstrap over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gpytorch
import numpy as np
import torch

import itergp
from itergp.errors import InputError
from itergp.likelihoods import CategoricalLikelihood, LaplaceSite, Observations
from itergp.operators import make_operator
from itergp.posterior.posterior import posterior_covariance
from itergp.posterior.problem import Problem
from itergp.solvers.subspace.actions import leading_actions
from itergp.solvers.subspace.newton import evaluate, minimise
from itergp.solvers.subspace.newton_matrix import newton_matrix
from itergp.solvers.subspace.search_space import SearchSpace

CLASSES, INPUTS, RANK = 10, 8, 64
_REPEATS = 3


class _Model(itergp.models.NonConjugateGP):  # not GP: older revisions have none
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(x, y, CategoricalLikelihood(CLASSES))
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = _kernel()

    def forward(self, x: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def _kernel() -> gpytorch.kernels.ScaleKernel:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
    kernel.outputscale, kernel.base_kernel.lengthscale = 10.0, 2.0
    return kernel


@torch.no_grad()
def parts(rows: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name; every call does the same work again."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, INPUTS, generator=generator)
    y = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (rows - CLASSES,), generator=generator)])
    operator = make_operator(_kernel(), x, kind="blocked")
    likelihood = CategoricalLikelihood(CLASSES)
    problem = Problem(torch.zeros(rows, CLASSES), operator, LaplaceSite(Observations(likelihood, y)))
    empty, block = SearchSpace.empty(operator), torch.randn(rows, RANK, generator=generator)
    products = operator.matmul(block)
    space, _ = empty.extend(block, operator)
    start = evaluate(problem, space, torch.zeros(CLASSES, space.rank, dtype=torch.float64))
    actions = leading_actions(space, start.curvature, RANK // 4)
    model = _Model(x, y).eval()
    model.condition()
    test_x = torch.randn(max(rows // 5, 1), INPUTS, generator=generator)
    return {
        "kernel pass, 10 columns": lambda: operator.matmul(block[:, :CLASSES]),
        f"whitening, {RANK} directions": lambda: empty.extend(
            block, operator, lambda rest: products.reshape(1, rows, -1)
        ),
        "Newton matrix": lambda: newton_matrix(space, start.curvature),
        "Newton iteration in the space": lambda: minimise(problem, space, start, 1e-3),
        "covariance pass": lambda: posterior_covariance(problem, actions, start.curvature),
        "prediction, a fifth as many rows": lambda: model.predict(test_x),
    }


@torch.no_grad()
def measure(rows: int) -> dict[str, float]:
    """Seconds of every part: the least of some repetitions, after one that is not counted."""
    found = {}
    for name, call in parts(rows).items():
        call()
        least = float("inf")
        for _ in range(_REPEATS):
            started = time.perf_counter()
            call()
            least = min(least, time.perf_counter() - started)
        found[name] = least
    return found


def compare(
    first: list[dict[str, float]], second: list[dict[str, float]]
) -> list[tuple[str, float, float, float, float]]:
    """For every part: seconds of the first, ratio second / first, and a 95 % interval of the ratio."""
    rng = np.random.RandomState(0)
    rows = []
    for name in first[0]:
        a, b = (np.array([measured[name] for measured in side]) for side in (first, second))
        draws = rng.randint(len(a), size=(2_000, len(a))), rng.randint(len(b), size=(2_000, len(b)))
        spread = np.median(b[draws[1]], 1) / np.median(a[draws[0]], 1)
        low, high = np.quantile(spread, [0.025, 0.975])
        rows.append((name, float(np.median(a)), float(np.median(b) / np.median(a)), float(low), float(high)))
    return rows


def run(revisions: list[str], rows: int, rounds: int, threads: int) -> None:
    """Times what is here, or two revisions in turn, and prints a table."""
    if len(revisions) not in (0, 2):
        raise InputError(f"`micro` needs two revisions, or none for what is here. Got {revisions}. Name both.")
    root = Path(__file__).parents[1]
    if not revisions:
        measured = _measure_in(root, rows, threads)
        print("\n".join(f"{name:<32} {1e3 * value:10.2f} ms" for name, value in measured.items()))
        return
    with tempfile.TemporaryDirectory() as folder:
        trees = [_check_out(root, revision, Path(folder) / str(i)) for i, revision in enumerate(revisions)]
        sides: tuple[list[dict[str, float]], ...] = ([], [])
        for index in range(rounds):
            for side, tree in zip(sides, trees, strict=True):
                side.append(_measure_in(tree, rows, threads))
            print(f"round {index + 1} of {rounds}", file=sys.stderr, flush=True)
    print(f"{'':<32} {revisions[0][:12]:>14} {revisions[1][:12] + ' / it':>18}   95 % interval")
    for name, seconds, ratio, low, high in compare(*sides):
        print(f"{name:<32} {1e3 * seconds:11.2f} ms {ratio:18.3f}   {low:.3f} to {high:.3f}")


def _check_out(root: Path, revision: str, folder: Path) -> Path:
    """The package of a revision, without touching the working tree."""
    folder.mkdir()
    words = ["git", "-C", str(root), "archive", revision, "itergp"]
    try:
        archive = subprocess.run(words, capture_output=True, check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f"{revision!r} must be a revision. Git says: {error.stderr.decode().strip()}.") from error
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def _measure_in(tree: Path, rows: int, threads: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads), "KEOPS_VERBOSE": "0"}
    words = [sys.executable, str(Path(__file__)), "--rows", str(rows), "--package", str(tree)]
    found = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True)
    if found.returncode != 0:
        raise InputError(f"The parts must run with the package in {tree}. Got: {found.stderr.strip()[-500:]}")
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """What a process of its own does: times every part and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--package", type=Path, required=True, help="where the package must come from")
    options = parser.parse_args()
    found = Path(itergp.__file__).resolve().parents[1]
    if found != options.package.resolve():
        raise SystemExit(f"The package must come from {options.package}. Got {found}.")
    print(json.dumps(measure(options.rows)))


if __name__ == "__main__":
    main()

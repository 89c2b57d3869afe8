"""``itergp demo``: a Gaussian process classifies real images, and says how sure it is and how exact."""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpytorch
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from itergp import diagnostics
from itergp.cli.svgp import fit_svgp, svgp_probs
from itergp.errors import InputError
from itergp.likelihoods import CategoricalLikelihood
from itergp.models import GP
from itergp.solvers import Solution, SubspaceNewton

_TEST_ROWS = 500
# Chosen on held-out training digits among 20 pairs.
_LENGTHSCALE = 3.0
_OUTPUTSCALE = 150.0
_TOLERANCE = 1e-6


def digits_model(x: Tensor, y: Tensor) -> GP:
    """Softmax classifier with one Matern-3/2 kernel for all classes."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
    kernel.outputscale, kernel.base_kernel.lengthscale = _OUTPUTSCALE, _LENGTHSCALE
    solver = SubspaceNewton(tolerance=_TOLERANCE)
    return GP(x, y, CategoricalLikelihood(10), mean=gpytorch.means.ZeroMean(), kernel=kernel, solver=solver)


@dataclass(frozen=True)
class Digits:
    """The 1,797 digits that scikit-learn ships, 8 x 8 pixels in [0, 1], split at random."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def load(cls, seed: int) -> Digits:
        """Loads and splits; nothing is downloaded."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                "The demo needs scikit-learn and matplotlib. Install them with `pip install itergp[sklearn,plot]`."
            ) from error
        data = load_digits()
        x = torch.tensor(data.data / 16.0, dtype=torch.float32)
        y = torch.tensor(data.target)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        train, test = order[_TEST_ROWS:], order[:_TEST_ROWS]
        return cls(x[train], y[train], x[test], y[test])


def add_parser(commands: Any) -> None:
    """Adds the command to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", help="classify the digits that scikit-learn ships, next to a GPyTorch SVGP"
    )
    parser.add_argument("--figure", type=Path, default=Path("itergp-demo.png"), help="where to write the figure")
    parser.add_argument("--seed", type=int, default=0, help="of the random split")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fits, compares, prints and draws."""
    console = Console()
    digits = Digits.load(options.seed)
    console.print(
        f"[bold]Handwritten digits[/bold]: {len(digits.train_y):,} images to learn from, {len(digits.test_y)} to judge by, "
        "10 classes.\nGaussian process with softmax likelihood, Matern-3/2 kernel, variational posterior.\n"
    )
    model = digits_model(digits.train_x, digits.train_y).eval()
    started = time.perf_counter()
    solution = model.condition(progress=not options.quiet)
    with torch.no_grad():
        probs = model.predict(digits.test_x).probs
    seconds = time.perf_counter() - started

    if not options.quiet:
        console.print(f"\nGPyTorch SVGP (100 inducing points, Adam), same kernel, for the same {seconds:.2f} s ...")
    likelihood = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=10, mixing_weights=False)
    rival, steps = fit_svgp(
        copy.deepcopy(model.covar_module),
        digits.train_x,
        digits.train_y,
        likelihood,
        num_inducing=100,
        seconds=seconds,
        seed=options.seed,
    )
    rival_probs = svgp_probs(rival, likelihood, digits.test_x)

    console.print(_table(digits.test_y, probs, rival_probs, seconds, steps, solution))
    console.print(_explanation(solution, model, digits.test_x))
    draw(digits, probs, rival_probs, solution, options.figure)
    console.print(f"Figure: {options.figure}")
    return 0


def _table(targets: Tensor, probs: Tensor, rival: Tensor, seconds: float, steps: int, solution: Solution) -> Table:
    table = Table(title="500 test digits", title_justify="left")
    for column, justify in (("", "left"), ("itergp", "right"), ("GPyTorch SVGP", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    rows = (
        ("accuracy", diagnostics.accuracy, "{:.3f}"),
        ("negative log-likelihood (nats)", diagnostics.negative_log_likelihood, "{:.3f}"),
        ("expected calibration error", diagnostics.expected_calibration_error, "{:.3f}"),
    )
    for name, metric, text in rows:
        table.add_row(name, text.format(metric(probs, targets)), text.format(metric(rival, targets)))
    table.add_row("seconds, fitting and predicting", f"{seconds:.2f}", f"{seconds:.2f} (fitting only)")
    table.add_row("work", f"{solution.kernel_passes} kernel passes", f"{steps} Adam steps")
    table.add_row("rank of the covariance", str(solution.rank), "100 per class")
    gap = "-" if solution.certificate is None else f"{solution.certificate.objective_gap:.2g} nats"
    table.add_row("certified gap to the exact mode", gap, "unknown")
    return table


def _explanation(solution: Solution, model: GP, x: Tensor) -> str:
    assert solution.certificate is not None
    with torch.no_grad():
        error = float(solution.certificate.latent_error(x).max())
    return (
        f"{solution.status}\nThe certificate bounds the numerical error: no latent value at any test digit is further than "
        f"{error:.2g} from the exact mode.\n"
    )


def draw(digits: Digits, probs: Tensor, rival: Tensor, solution: Solution, path: Path) -> None:
    """Writes the figure: uncertain and certain digits, reliability, convergence."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("The figure needs matplotlib. Install it with `pip install itergp[plot]`.") from error
    figure: Any = Figure(figsize=(11, 8.2), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1.0))
    _draw_digits(top, digits, probs)
    left, right = bottom.subplots(1, 2)
    curves = {
        "itergp": diagnostics.reliability(probs, digits.test_y),
        "SVGP, same time": diagnostics.reliability(rival, digits.test_y),
    }
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    diagnostics.plot_reliability(left, curves)
    diagnostics.plot_convergence(right, solution.trace)
    figure.savefig(path, dpi=120)


def _draw_digits(figure: Any, digits: Digits, probs: Tensor) -> None:
    order = probs.max(1).values.argsort()
    count = 8
    groups = (("Least certain", order[:count]), ("Most certain", order[-count:].flip(0)))
    grid = figure.subplots(4, count, height_ratios=(1.3, 0.7, 1.3, 0.7))
    for row, (name, rows) in enumerate(groups):
        for column, index in enumerate(rows.tolist()):
            image, bars = grid[2 * row][column], grid[2 * row + 1][column]
            image.imshow(digits.test_x[index].reshape(8, 8).numpy(), cmap="gray_r", interpolation="nearest")
            image.set(xticks=[], yticks=[])
            image.spines[:].set_visible(False)
            label, said = int(digits.test_y[index]), int(probs[index].argmax())
            color = "black" if said == label else diagnostics.plots.ORANGE
            image.set_title(f"is {label}, says {said}", fontsize=8, pad=2, color=color)
            diagnostics.plot_class_probabilities(bars, probs[index].tolist(), label)
        grid[2 * row][0].set_ylabel(name, fontsize=9)
    figure.suptitle(
        "Least and most certain test digits, with the probabilities of the ten classes (blue: the true one)"
    )

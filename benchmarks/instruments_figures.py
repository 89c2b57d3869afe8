"""The pictures of the page on instruments.

``python -m benchmarks.instruments_figures`` writes ``dashboard.png`` and ``maps.png`` to ``docs/images``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.models import matern_kernel
from itergp.diagnostics import plot_class_map, plot_relevance, plot_spectrum, plot_uncertainty_map
from itergp.likelihoods import CategoricalLikelihood
from itergp.models import GP
from itergp.solvers import SubspaceNewton

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def draw_dashboard() -> None:
    """Digits: ten classes, a large output scale."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32)[:1500], torch.tensor(digits.target)[:1500]
    trace = GP(x, y, CategoricalLikelihood(num_classes=10), kernel=matern_kernel(3.0, 150.0)).condition().trace
    _save(trace.plot()["gap"].figure.figure, "dashboard.png")


def draw_maps() -> None:
    """Three classes in two dimensions, and a covariance of small rank."""
    torch.manual_seed(1)
    x = torch.randn(300, 2)
    y = (torch.sin(2.0 * x[:, 0]) + x[:, 1] > 0).long() + (x[:, 0] > 0.5).long()
    likelihood, solver = CategoricalLikelihood(num_classes=3), SubspaceNewton(covariance_rank=20)
    model = GP(x, y, likelihood, kernel=matern_kernel(0.8, 10.0), solver=solver).eval()
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    plot_class_map(axes[0, 0], model)
    for panel, quantity in zip(
        (axes[0, 1], axes[0, 2], axes[1, 0]), ("entropy", "mathematical", "computational"), strict=True
    ):
        plot_uncertainty_map(panel, model, quantity)
    lengthscale = torch.tensor([0.5, 3.0, 20.0, 1.2])
    plot_relevance(axes[1, 1], lengthscale, names=["age", "height", "shoe size", "income"])
    plot_spectrum(axes[1, 2], model.solution.trace.spectrum)
    _save(figure, "maps.png")


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=90)
    Image.open(IMAGES / name).convert("RGB").quantize(192).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    draw_dashboard()
    draw_maps()

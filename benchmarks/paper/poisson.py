"""Poisson regression with one input: what a Newton step, an action and computational uncertainty are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gpytorch
import torch
from torch import Tensor

from benchmarks.paper.tables import machine, write
from itergp.diagnostics import plot_uncertainty
from itergp.likelihoods import LaplaceSite, PoissonLikelihood
from itergp.models import GP
from itergp.solvers import DenseNewton, IterNCGP, policies

ACTIONS = 4  # per Newton step
STEPS = (1, 2, 3)
POLICIES = {"unit vectors": policies.UnitVectors(order="variance"), "conjugate gradients": policies.CG()}
DATA, TARGET = "#444444", "#2b9348"


def count_model(x: Tensor, y: Tensor, **options: Any) -> GP:
    """A Gaussian process prior on the logarithm of a rate; hyperparameters fixed."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 1.0, 0.6
    options |= {"mean": gpytorch.means.ZeroMean(), "kernel": kernel, "approximation": "laplace"}
    return GP(x, y, PoissonLikelihood(), **options)


def make_data(seed: int = 0, num_rows: int = 60) -> tuple[Tensor, Tensor]:
    """Counts with rate ``exp(f)``; a gap in the inputs, so that there is mathematical uncertainty to see."""
    generator = torch.Generator().manual_seed(seed)
    x = 6.0 * torch.rand(num_rows, generator=generator, dtype=torch.float64)
    x = torch.where((x > 3.2) & (x < 4.2), x - 3.2, x).sort().values
    f = 1.2 * torch.sin(1.6 * x) + 0.4 * torch.cos(4.0 * x)
    return x.unsqueeze(-1), torch.poisson(f.exp(), generator=generator).long()


def solve(x: Tensor, y: Tensor, policy: Any, steps: int) -> GP:
    solver = IterNCGP(policy=policy, iterations=ACTIONS, max_steps=steps, tolerance=1e-14, inner_tolerance=1e-12)
    model = count_model(x, y, solver=solver).double().eval()
    model.condition()
    return model


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    x, y = make_data()
    grid = torch.linspace(-0.3, 6.3, 300, dtype=torch.float64).unsqueeze(-1)
    exact = count_model(x, y, solver=DenseNewton()).double().eval()
    exact.condition()
    figures: dict[str, Any] = {"machine": machine(), "rows": []}
    models = {}
    for name, policy in POLICIES.items():
        for steps in STEPS:
            model = models[name, steps] = solve(x, y, policy, steps)
            parts = model.decompose_uncertainty(grid)
            error = (model.latent_mean(grid) - exact.latent_mean(grid)).abs().mean()
            share = parts.computational.sum() / parts.combined.sum()
            figures["rows"].append(
                {
                    "policy": name,
                    "steps": steps,
                    "actions": model.solution.rank,
                    "passes": model.solution.kernel_passes,
                    "error": float(error),
                    "computational_share": float(share),
                }
            )
    _draw(folder / "poisson.png", x, y, grid, models, exact)
    rows = [
        [r["policy"], str(r["steps"]), str(r["passes"]), f"{r['error']:.4f}", f"{100 * r['computational_share']:.0f} %"]
        for r in figures["rows"]
    ]
    notes = [
        f"{machine()}. {len(x)} counts, {ACTIONS} actions per Newton step, recycled. The last kernel product of each run is "
        "the certificate's; unit vectors need no other.",
        "![Poisson regression by Newton steps](poisson.png)",
    ]
    header = [
        "policy",
        "Newton steps",
        "kernel products",
        "mean error of the latent mean",
        "computational share of variance",
    ]
    write(folder, "poisson", "Poisson regression, one input", notes, header, rows)
    return figures


def _draw(path: Path, x: Tensor, y: Tensor, grid: Tensor, models: dict, exact: GP) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 6.6), layout="constrained")
    axes = figure.subplots(2, 1 + len(STEPS), sharex=True, sharey=True)
    mode = exact.latent_mean(grid)[:, 0].detach()
    for row, name in zip(axes, POLICIES, strict=True):
        _prior(row[0], x, y, grid, name)
        for panel, steps in zip(row[1:], STEPS, strict=True):
            model = models[name, steps]
            start = torch.zeros_like(x) if steps == 1 else models[name, steps - 1].solution.latent_values
            _step(panel, x, grid, model, start)
            panel.plot(grid[:, 0], mode, color="black", linestyle=":", linewidth=1.2, label="exact mode")
            panel.set_title(f"{name}: Newton step {steps}, {steps * ACTIONS} actions", fontsize=10)
    for panel in axes[1]:
        panel.set_xlabel("input x")
    for panel in axes[:, 0]:
        panel.set_ylabel("latent f, logarithm of the rate")
    axes[0, 0].set_ylim(-4.2, 4.2)
    handles = {
        label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    figure.savefig(path, dpi=110)


def _prior(panel: Any, x: Tensor, y: Tensor, grid: Tensor, name: str) -> None:
    panel.axhline(0.0, color="#2a6f97", linewidth=1.5)
    panel.fill_between(grid[:, 0], -2.0, 2.0, color="#2a6f97", alpha=0.12, linewidth=0, label="prior, two deviations")
    jittered = (y.double() + 0.3).log()
    panel.plot(x[:, 0], jittered, "x", color=DATA, markersize=5, label="data: log(count + 0.3)")
    panel.set_title(f"{name}: prior and data", fontsize=10)


def _step(panel: Any, x: Tensor, grid: Tensor, model: GP, start: Tensor) -> None:
    """The regression problem of the last Newton step, and the posterior after its actions."""
    plot_uncertainty(panel, grid, model.latent_mean(grid), model.decompose_uncertainty(grid))
    site = LaplaceSite(model.observations)
    gradient, curvature = site.derivatives(start)
    targets, deviation = start + gradient / curvature[..., 0], curvature[..., 0].rsqrt()
    panel.errorbar(
        x[:, 0],
        targets[:, 0],
        yerr=deviation[:, 0],
        fmt=".",
        color=TARGET,
        markersize=5,
        elinewidth=0.6,
        alpha=0.6,
        label="pseudo-targets and their noise",
    )
    if isinstance(model.solver.policy, policies.UnitVectors):
        held = (
            model.solution.actions.actions[:, 0, :].abs().amax(0) > 1.0 - 1e-9
        )  # unit vectors, not the certificate's action
        rows = model.solution.actions.actions[:, 0, held].abs().argmax(0)
        panel.plot(
            x[rows, 0], torch.full((len(rows),), -4.0), "^", color="#7b2cbf", markersize=6, label="rows computed on"
        )

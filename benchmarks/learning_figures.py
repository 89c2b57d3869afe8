"""The pictures of the page on learning: a trajectory, reliability, and the bound beside the evidence.

``python -m benchmarks.learning_figures`` writes them to ``docs/images``.
"""

from __future__ import annotations

import math
from pathlib import Path

import gpytorch
import matplotlib.pyplot as plt
import torch

import itergp
from benchmarks.data import keel
from benchmarks.models import default_model, matern_kernel
from itergp.diagnostics import plot_reliability, plot_trajectory
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import GP
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence
from itergp.solvers import SubspaceNewton

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NUM_ROWS, RANKS, SAMPLES = 100, (2, 5, 20, 100), 20_000


def make_model(x: torch.Tensor, y: torch.Tensor, lengthscale: float, rank: int) -> GP:
    mean, kernel = gpytorch.means.ZeroMean(), matern_kernel(lengthscale, 10.0)
    solver = SubspaceNewton(covariance_rank=rank, tolerance=1e-10)
    return GP(x, y, BernoulliLikelihood(), mean=mean, kernel=kernel, solver=solver)


def sampled_log_evidence(model: GP) -> float:
    """Importance sampling from the model's Gaussian posterior."""
    x = model.train_inputs[0]
    eye = torch.eye(NUM_ROWS, dtype=x.dtype)
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(NUM_ROWS, dtype=x.dtype), model.covar_module(x).to_dense() + 1e-8 * eye
    )
    latent = model(x)
    posterior = torch.distributions.MultivariateNormal(latent.mean, latent.covariance_matrix + 1e-8 * eye)
    f = posterior.sample(torch.Size([SAMPLES]))
    fit = model.likelihood.log_density(f.unsqueeze(-1), model.train_targets).sum(-1)
    return float(torch.logsumexp(fit + prior.log_prob(f) - posterior.log_prob(f), 0) - math.log(SAMPLES))


def draw_bound(axes) -> None:
    data = keel("banana", 0)
    x, y = data.train_x[:NUM_ROWS].double(), data.train_y[:NUM_ROWS]
    lengthscales = torch.logspace(-1.0, 0.9, 20).tolist()
    curves: dict[str, list[float]] = {"sampled evidence": [], "Laplace evidence": []}
    torch.manual_seed(0)
    with torch.no_grad():
        for lengthscale in lengthscales:
            full = make_model(x, y, lengthscale, NUM_ROWS).double()
            curves["sampled evidence"].append(sampled_log_evidence(full.eval()))
            laplace = LaplaceEvidence(full.likelihood, full, initialise_kernel=False)
            curves["Laplace evidence"].append(float(laplace(full.train()(x), full.train_targets)) * NUM_ROWS)
            for rank in RANKS:
                model = make_model(x, y, lengthscale, rank).double().train()
                bound = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
                curves.setdefault(f"bound, rank {rank}", []).append(
                    float(bound(model(x), model.train_targets)) * NUM_ROWS
                )
    for (name, values), style in zip(curves.items(), ("k-", "k:", *["-"] * len(RANKS)), strict=True):
        (line,) = axes.plot(lengthscales, values, style, label=name, linewidth=1.3)
        best = max(range(len(values)), key=values.__getitem__)
        axes.plot(lengthscales[best], values[best], "o", color=line.get_color(), markersize=4)
        print(f"{name}: largest {values[best]:.2f} at lengthscale {lengthscales[best]:.2f}")
    above = max(
        b - e for rank in RANKS for b, e in zip(curves[f"bound, rank {rank}"], curves["sampled evidence"], strict=True)
    )
    print(f"largest excess of a bound over the sampled evidence: {above:.3f} nats")
    axes.set(
        xscale="log", xlabel="lengthscale", ylabel="nats", title=f"Evidence and its bounds, {NUM_ROWS} rows of banana"
    )
    axes.legend(frameon=False, fontsize="x-small")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained")
    draw_bound(axes[0])
    data = keel("phoneme", 0)
    model = default_model(data)
    result = itergp.fit(model)
    plot_trajectory(axes[1], result.records)
    axes[1].set_title("Hyperparameters during itergp.fit, phoneme")
    figure.savefig(IMAGES / "learning.png", dpi=140)
    assert result.calibration is not None
    figure, plain = plt.subplots(figsize=(5, 4), layout="constrained")
    plot_reliability(plain, {"phoneme, held-out rows": result.calibration.reliability})
    figure.savefig(IMAGES / "reliability.png", dpi=110)


if __name__ == "__main__":
    main()

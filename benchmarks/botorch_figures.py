"""The pictures of the page on Bayesian optimisation: a feasibility boundary found, and labels asked for.

``python -m benchmarks.botorch_figures`` writes them to ``docs/images``.
"""

from __future__ import annotations

from pathlib import Path

import gpytorch
import matplotlib.pyplot as plt
import torch
from botorch.acquisition import AcquisitionFunction, AnalyticAcquisitionFunction
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.transforms import t_batch_mode_transform
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.models import matern_kernel
from itergp.botorch import BotorchModel
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, Likelihood
from itergp.models import GP

IMAGES = Path(__file__).parents[1] / "docs" / "images"
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
START, EVALUATIONS, SEEDS = 10, 60, 5
LABELLED, BATCH, ROUNDS = 20, 10, 18


def make_model(x: Tensor, y: Tensor, likelihood: Likelihood, length: float, scale: float) -> GP:
    mean, kernel = gpytorch.means.ZeroMean(), matern_kernel(length, scale, nu=2.5)
    return GP(x, y, likelihood, mean=mean, kernel=kernel).eval()


class Straddle(AnalyticAcquisitionFunction):
    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        mean, sigma = self._mean_and_sigma(X)
        return (1.96 * sigma - (mean.square() + 1e-2).sqrt()).squeeze(-1)  # without a kink for L-BFGS


class Disagreement(AcquisitionFunction):
    def __init__(self, model: BotorchModel) -> None:
        super().__init__(model)
        self.sampler = SobolQMCNormalSampler(torch.Size([64]), seed=0)

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        probs = self.sampler(self.model.posterior(X)).softmax(-1)
        entropy = torch.special.entr(probs).sum(-1).mean(0)
        return (torch.special.entr(probs.mean(0)).sum(-1) - entropy).squeeze(-1)


def feasible(x: Tensor) -> Tensor:
    """A ring that is broken on one side."""
    radius = (x - 0.5).norm(dim=-1)
    return ((radius - 0.3).abs() < 0.1) & ~((x[..., 0] > 0.5) & ((x[..., 1] - 0.5).abs() < 0.12))


def find_boundary(seed: int, *, random: bool) -> tuple[BotorchModel, list[float]]:
    grid = torch.cartesian_prod(*(torch.linspace(0, 1, 60, dtype=torch.float64),) * 2)
    torch.manual_seed(seed)
    x = torch.rand(START, 2, dtype=torch.float64)
    start = make_model(x, feasible(x).long(), BernoulliLikelihood("probit"), 0.15, 25.0)
    model = BotorchModel(start)
    errors = []
    for _ in range(EVALUATIONS):
        with torch.no_grad():
            errors.append(float(((model.model.latent_mean(grid)[:, 0] > 0) != feasible(grid)).double().mean()))
        if random:
            new = torch.rand(1, 2, dtype=torch.float64)
        else:
            new, _ = optimize_acqf(Straddle(model), BOUNDS, q=1, num_restarts=4, raw_samples=64)
        model = model.condition_on_observations(new, feasible(new).double().unsqueeze(-1))
    return model, errors


def draw_boundary() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained")
    grid = torch.cartesian_prod(*(torch.linspace(0, 1, 120, dtype=torch.float64),) * 2)
    curves: dict[str, list[list[float]]] = {"straddle": [], "at random": []}
    for seed in range(SEEDS):
        for name, found in curves.items():
            model, errors = find_boundary(seed, random=name == "at random")
            found.append(errors)
            if seed == 0 and name == "straddle":
                shown = model.model
    with torch.no_grad():
        probs = shown.predict(grid).probs.view(120, 120)
    axes[0].imshow(probs.mT, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu", vmin=0, vmax=1)
    axes[0].contour(*(t.view(120, 120) for t in grid.T), feasible(grid).double().view(120, 120), [0.5], colors="k")
    x, y = shown.train_inputs[0], shown.train_targets
    for label, marker in ((1, "o"), (0, "x")):
        axes[0].plot(*x[y == label].T, marker, color="k", markersize=4, mfc="w", label=("fails", "works")[label])
    axes[0].set(xticks=[], yticks=[], title=f"Probability to work, {len(x)} evaluations")
    axes[0].legend(loc="upper right", fontsize="small")
    for name, found in curves.items():
        values = torch.tensor(found)
        steps = torch.arange(START, START + EVALUATIONS)
        (line,) = axes[1].plot(steps, values.mean(0), label=name)
        axes[1].fill_between(steps, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.2)
        print(f"{name}: misjudged area after {START + EVALUATIONS - 1} evaluations {float(values[:, -1].mean()):.3f}")
    axes[1].set(
        xlabel="evaluations", ylabel="misjudged share of the area", title=f"{SEEDS} random starts", ylim=(0, None)
    )
    axes[1].legend(frameon=False)
    figure.savefig(IMAGES / "boundary.png", dpi=110)


def label_digits(seed: int, *, random: bool) -> list[float]:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(digits.data / 16.0)[order], torch.tensor(digits.target)[order]
    test_x, test_y, pool_x, pool_y = x[:500], y[:500], x[500:], y[500:]
    free = torch.ones(len(pool_y), dtype=torch.bool)
    chosen = torch.arange(LABELLED)
    model = BotorchModel(make_model(pool_x[chosen], pool_y[chosen], CategoricalLikelihood(10), 3.0, 100.0))
    accuracies = []
    for _ in range(ROUNDS):
        free[chosen] = False
        with torch.no_grad():
            accuracies.append(float((model.model.latent_mean(test_x).argmax(-1) == test_y).double().mean()))
            score = torch.rand(len(pool_y)) if random else Disagreement(model)(pool_x.unsqueeze(1))
        chosen = score.masked_fill(~free, -1.0).topk(BATCH).indices
        model = model.condition_on_observations(pool_x[chosen], pool_y[chosen].double().unsqueeze(-1))
    return accuracies


def draw_labels() -> None:
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    steps = LABELLED + BATCH * torch.arange(ROUNDS)
    for name in ("where samples disagree", "at random"):
        values = torch.tensor([label_digits(seed, random=name == "at random") for seed in range(SEEDS)])
        (line,) = axis.plot(steps, values.mean(0), label=name)
        axis.fill_between(steps, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.2)
        print(f"{name}: accuracy with {int(steps[-1])} labels {float(values[:, -1].mean()):.3f}")
    axis.set(xlabel="labelled digits", ylabel="accuracy on 500 others", title=f"{SEEDS} random starts")
    axis.legend(frameon=False)
    figure.savefig(IMAGES / "labels.png", dpi=110)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    draw_labels()
    draw_boundary()


if __name__ == "__main__":
    main()
